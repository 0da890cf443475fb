//! Trees of all that an image can hold, with sizes around those where the format changes its ways.

use minivm_tests::stress;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// What a file is made of, and what has to be found of it.
#[derive(Clone, Debug)]
struct Wanted {
    permissions: u32,
    owner: (u32, u32),
    mtime: Time,
    xattrs: BTreeMap<String, Vec<u8>>,
    kind: Wants,
}

#[derive(Clone, Debug)]
enum Wants {
    Folder,
    File(Vec<u8>),
    /// A size, and pieces of data at distances from one another.
    Sparse(u64, Vec<(u64, Vec<u8>)>),
    Symlink(usize),
    Char(u32, u32),
    Fifo,
}

fn kind() -> impl Strategy<Value = Wants> {
    let sizes = select(vec![0, 1, 4000, 4064, 4095, 4096, 4097, 12_288, 20_000]);
    let data = (sizes.clone(), any::<u8>()).prop_map(|(size, byte)| vec![byte; size]);
    let gaps = select(vec![0, 1, 511, 4096, 10_000, 1 << 20, 3 << 30]);
    let piece = (gaps.clone(), data.clone());
    prop_oneof![
        3 => Just(Wants::Folder),
        3 => data.prop_map(Wants::File),
        2 => (gaps, prop::collection::vec(piece, 0..4)).prop_map(|(more, pieces)| {
            let mut at = 0;
            let place = |(gap, data): (u64, Vec<u8>)| {
                let start = at + gap;
                at = start + data.len() as u64;
                (start, data)
            };
            let pieces: Vec<_> = pieces.into_iter().map(place).collect();
            Wants::Sparse(at + more, pieces)
        }),
        1 => select(vec![1, 60, 3900, 4000, 4032, 4064, 4095]).prop_map(Wants::Symlink),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| Wants::Char(major, minor)),
        1 => Just(Wants::Fifo),
    ]
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let id = select(vec![0, 1, 65_535, 65_536, u32::MAX - 1]);
    let seconds = select(vec![0, 1_700_000_000, -1, i64::from(u32::MAX) + 1]);
    let nanoseconds = select(vec![0, 1, 999_999_999]);
    let prefix = select(vec!["user.", "trusted.", "security."]);
    let name = (prefix, "[a-z.]{1,30}").prop_map(|(prefix, rest)| format!("{prefix}{rest}"));
    let value = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        1 => select(vec![3000, 4000, 9000]).prop_map(|len| vec![7; len]),
    ];
    let xattrs = prop_oneof![
        3 => Just(BTreeMap::new()),
        1 => prop::collection::btree_map(name, value, 0..4),
    ];
    (
        0u32..0o10000,
        (id.clone(), id),
        (seconds, nanoseconds),
        xattrs,
        kind(),
    )
        .prop_map(
            |(permissions, owner, (seconds, nanoseconds), xattrs, kind)| Wanted {
                permissions,
                owner,
                mtime: Time {
                    seconds,
                    nanoseconds,
                },
                xattrs,
                kind,
            },
        )
}

/// The name of the file with this number: of any length, and with bytes before and after a dot's.
fn name(number: usize, len: usize) -> Vec<u8> {
    let first = [b'!', b'-', b'.', b'a', 0xff][number % 5];
    let mut name = [&[first][..], number.to_string().as_bytes()].concat();
    name.resize(name.len().max(len), b'~');
    name
}

fn target(len: usize) -> Vec<u8> {
    vec![b't'; len]
}

fn layer_entry(path: &[u8], wanted: &Wanted) -> Entry {
    let made = match &wanted.kind {
        Wants::Folder => folder(path),
        Wants::File(data) => file(path, data),
        Wants::Symlink(len) => symlink(path, target(*len)),
        Wants::Fifo => entry(EntryType::Fifo, path),
        &Wants::Char(major, minor) => {
            let mut device = entry(EntryType::Char, path);
            device.header.set_device_major(major).unwrap();
            // A field for it has seven digits.
            device.header.set_device_minor(minor).unwrap();
            device
        }
        Wants::Sparse(size, pieces) => sparse(path, *size, pieces),
    };
    let Time {
        seconds,
        nanoseconds,
    } = wanted.mtime;
    // Negative seconds are rounded down, and written towards zero.
    let mtime = match seconds < 0 && nanoseconds > 0 {
        true if seconds == -1 => format!("-0.{:09}", 1_000_000_000 - nanoseconds),
        true => format!("{}.{:09}", seconds + 1, 1_000_000_000 - nanoseconds),
        false => format!("{seconds}.{nanoseconds:09}"),
    };
    let (uid, gid) = wanted.owner;
    let made = made
        .mode(wanted.permissions)
        .owner(uid.into(), gid.into())
        .pax("mtime", mtime);
    wanted
        .xattrs
        .iter()
        .fold(made, |made, (name, value)| made.xattr(name, value))
}

/// Checks a file's data, and that its holes take no more room than they need.
fn check_data(
    reader: &Reader<'_, OsFile>,
    place: &crate::erofs::read::Place,
    size: u64,
    pieces: &[(u64, Vec<u8>)],
) {
    assert_eq!(place.size, size);
    let blocks = reader.blocks(place).unwrap();
    assert!(blocks <= size.div_ceil(4096));
    let data: u64 = pieces.iter().map(|(_, data)| data.len() as u64).sum();
    assert!(
        blocks * 4096 <= 2 * data + (1 << 20),
        "{blocks} blocks for {data} bytes"
    );
    // Gigabytes of zeros are not worth the time.
    let near = |at: u64| {
        pieces
            .iter()
            .any(|(start, data)| at + 8192 > *start && at < start + data.len() as u64 + 8192)
    };
    let mut at = 0;
    let mut data = reader.data(place);
    let mut buffer = vec![0; 64 << 10];
    while at < size.min(2 << 20) {
        let count = data.read(&mut buffer).unwrap();
        assert!(count > 0);
        for (offset, &byte) in (at..)
            .zip(&buffer[..count])
            .filter(|(offset, byte)| **byte != 0 || near(*offset))
        {
            let of_piece = pieces.iter().find_map(|(start, data)| {
                let within = usize::try_from(offset.checked_sub(*start)?).unwrap();
                data.get(within)
            });
            assert_eq!(byte, of_piece.copied().unwrap_or(0), "byte {offset}");
        }
        at += count as u64;
    }
}

fn check(reader: &Reader<'_, OsFile>, inode: &Inode, wanted: &Wanted) {
    // Links have all of them.
    let permissions = match wanted.kind {
        Wants::Symlink(_) => 0o777,
        _ => wanted.permissions,
    };
    assert_eq!(inode.permissions, permissions);
    assert_eq!((inode.uid, inode.gid), wanted.owner);
    assert_eq!(inode.mtime, wanted.mtime);
    let xattrs = wanted.xattrs.iter();
    let xattrs: Vec<_> = xattrs
        .map(|(name, value)| (name.clone().into_bytes(), value.clone()))
        .collect();
    assert_eq!(inode.xattrs, xattrs);
    match (&wanted.kind, &inode.content) {
        (Wants::Folder, Content::Folder) | (Wants::Fifo, Content::Fifo) => {}
        (Wants::Symlink(len), Content::Symlink(found)) => assert_eq!(*found, target(*len)),
        (Wants::Char(one, two), Content::CharDevice { major, minor }) => {
            assert_eq!((one, two), (major, minor))
        }
        (Wants::File(data), Content::File(place)) => {
            check_data(reader, place, data.len() as u64, &[(0, data.clone())])
        }
        (Wants::Sparse(size, pieces), Content::File(place)) => {
            check_data(reader, place, *size, pieces)
        }
        (wanted, found) => panic!("{found:?} instead of {wanted:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(stress::count(40, 5_000)))]

    #[test]
    fn what_goes_into_an_image_comes_out_of_it(
        // Each file is in the folder, among those before it, that its number chooses.
        tree in prop::collection::vec((wanted(), any::<prop::sample::Index>(), 0usize..256), 0..40),
        // Folders of a few blocks.
        crowd in 0usize..700,
        length in 1usize..200,
    ) {
        let mut folders = vec![Vec::new()];
        let mut expected = BTreeMap::new();
        let mut entries = Vec::new();
        for (number, (wanted, above, len)) in tree.iter().enumerate() {
            let above = &folders[above.index(folders.len())];
            let slash: &[u8] = if above.is_empty() { b"" } else { b"/" };
            let path = [above, slash, &name(number, *len)].concat();
            if path.len() >= 4096 {
                continue;
            }
            entries.push(layer_entry(&path, wanted));
            if matches!(wanted.kind, Wants::Folder) {
                folders.push(path.clone());
            }
            expected.insert(path, wanted);
        }
        for number in 0..crowd {
            entries.push(hard([b"crowd/", &name(number, length)[..]].concat(), "crowded"));
        }
        entries.insert(0, file("crowded", "one"));
        let image = image_file_of(&entries);
        let reader = Reader::open(&image).unwrap();
        let mut found = 0;
        let mut names = 0;
        let walked = reader.walk(|path, inode| {
            if let Some(wanted) = expected.get(path) {
                check(&reader, inode, wanted);
                found += 1;
            }
            if path.starts_with(b"crowd/") {
                assert_eq!(inode.links as usize, crowd + 1);
                names += 1;
            }
            Ok::<_, crate::erofs::read::Error>(())
        });
        walked.unwrap();
        assert_eq!((found, names), (expected.len(), crowd));
    }
}

/// Makes an image, which may have files of gigabytes.
fn image_file_of(entries: &[Entry]) -> OsFile {
    let out = tempfile::tempfile().unwrap();
    let made = write_erofs(&image_of(&[entries]), &Limits::default(), &out).unwrap();
    assert_eq!(made.bytes, out.metadata().unwrap().len());
    out
}
