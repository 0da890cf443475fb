//! Snapshots of made-up machines: saving and restoring, refusals, and the remains of a save that fails. None of it needs KVM.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use minivm_tests::snapshot::save_in;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use std::borrow::Cow;

use super::memory_file::MemoryRecord;
use super::state::Devices;
use super::*;
use crate::arch::board;
use crate::arch::vcpu_state::{MACHINE, VcpuState};
use crate::devices::uart;
use crate::layout;
use crate::memory::{GuestRam, PAGE};

const MEMORY: u64 = 32 << 20;

fn ram_with(pages: &[(u64, u8)]) -> GuestRam {
    let ram = GuestRam::new(MEMORY).unwrap();
    fill(&ram, pages);
    ram
}

/// Returns the guest-physical address of a page of RAM.
fn address(page: u64) -> GuestAddress {
    GuestAddress(layout::ram(MEMORY)[0].0.0 + page * PAGE as u64)
}

fn fill(ram: &GuestRam, pages: &[(u64, u8)]) {
    for &(page, byte) in pages {
        ram.map().write_slice(&[byte; PAGE], address(page)).unwrap();
    }
}

/// Returns the byte that fills a page, and checks that it does.
fn byte_of(ram: &GuestRam, page: u64) -> u8 {
    let mut bytes = [0; PAGE];
    ram.map().read_slice(&mut bytes, address(page)).unwrap();
    assert!(
        bytes.iter().all(|byte| *byte == bytes[0]),
        "page {page} is mixed"
    );
    bytes[0]
}

fn save_ram(folder: &Path, ram: &GuestRam, clock: u64) -> io::Result<()> {
    let devices = Devices {
        board: board::State::sample(clock),
        uarts: vec![uart::State::default(); 3],
    };
    save_in(folder, |state, memory, name| {
        let files = SaveFiles {
            state,
            memory,
            name,
        };
        save::write(&files, vec![VcpuState::sample()], devices, ram)
    })
}

/// A folder with a snapshot whose pages 1, 5 and the last hold something.
fn saved() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    save_ram(folder.path(), &ram_with(&[(1, 1), (5, 5), (8191, 9)]), 7).unwrap();
    folder
}

fn state_file(folder: &TempDir) -> Vec<u8> {
    fs::read(folder.path().join(SaveFiles::STATE)).unwrap()
}

fn memory_path(folder: &Path) -> PathBuf {
    folder.join(Snapshot::memory_file(folder).unwrap())
}

fn restored(snapshot: &Snapshot) -> GuestRam {
    snapshot.ram().unwrap()
}

fn refusal(folder: &Path) -> SnapshotError {
    match Snapshot::open(folder).map(drop) {
        Err(Error::Snapshot { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

fn with_state(folder: &TempDir, change: impl FnOnce(&mut State)) -> SnapshotError {
    let mut state = file::decode(&state_file(folder)).unwrap();
    change(&mut state);
    file::decode(&file::encode(&state)).unwrap_err()
}

#[test]
fn saved_memory_is_restored() {
    let folder = saved();
    let snapshot = Snapshot::open(folder.path()).unwrap();
    snapshot.verify().unwrap();
    assert_eq!((snapshot.memory(), snapshot.cpus()), (MEMORY, 1));
    assert_eq!(snapshot.0.state.devices.board.number(), 7);
    assert_eq!(file::encode(&snapshot.0.state), state_file(&folder));
    let ram = restored(&snapshot);
    assert_eq!(
        [0, 1, 2, 5, 8190, 8191].map(|page| byte_of(&ram, page)),
        [0, 1, 0, 5, 0, 9]
    );
}

#[test]
fn zero_pages_take_no_room() {
    let folder = saved();
    let metadata = fs::metadata(memory_path(folder.path())).unwrap();
    assert_eq!(metadata.len(), MEMORY);
    assert!(
        metadata.blocks() * 512 <= 64 << 10,
        "{} blocks",
        metadata.blocks()
    );
}

#[test]
fn all_parts_of_ram_are_restored_to_their_ends() {
    let folder = tempfile::tempdir().unwrap();
    let ram = GuestRam::new(4 << 30).unwrap();
    let parts = layout::ram(4 << 30);
    let ends = |(base, size): &(GuestAddress, u64)| [base.0, base.0 + size - 1].map(GuestAddress);
    let places: Vec<_> = parts.iter().flat_map(ends).collect();
    (0u8..)
        .zip(&places)
        .for_each(|(byte, at)| ram.map().write_obj(byte + 1, *at).unwrap());
    save_ram(folder.path(), &ram, 0).unwrap();
    let ram = restored(&Snapshot::open(folder.path()).unwrap());
    for (byte, at) in (0u8..).zip(places) {
        assert_eq!(ram.map().read_obj::<u8>(at).unwrap(), byte + 1);
    }
}

#[test]
fn clones_never_see_one_anothers_writes() {
    let folder = saved();
    let snapshot = Snapshot::open(folder.path()).unwrap();
    let clones: Vec<_> = (0..20).map(|_| restored(&snapshot)).collect();
    (0u8..)
        .zip(&clones)
        .for_each(|(byte, ram)| fill(ram, &[(1, 100 + byte), (2, 100 + byte)]));
    for (byte, ram) in (0u8..).zip(&clones) {
        assert_eq!(
            [1, 2, 5].map(|page| byte_of(ram, page)),
            [100 + byte, 100 + byte, 5]
        );
    }
    snapshot.verify().unwrap();
    assert_eq!(byte_of(&restored(&snapshot), 1), 1);
}

#[test]
fn a_clone_can_be_saved_itself() {
    let (folder, second) = (saved(), tempfile::tempdir().unwrap());
    let ram = restored(&Snapshot::open(folder.path()).unwrap());
    // One page more, one changed, one erased, and one untouched.
    fill(&ram, &[(3, 3), (1, 11), (5, 0), (4000, 40), (4001, 0)]);
    save_ram(second.path(), &ram, 8).unwrap();
    // In place of the one that it is a clone of, too.
    save_ram(folder.path(), &ram, 8).unwrap();
    for folder in [&folder, &second] {
        let snapshot = Snapshot::open(folder.path()).unwrap();
        snapshot.verify().unwrap();
        let ram = restored(&snapshot);
        assert_eq!(
            [0, 1, 3, 5, 4000, 4001, 8191].map(|page| byte_of(&ram, page)),
            [0, 11, 3, 0, 40, 0, 9]
        );
    }
}

/// The flags of this process's mapping at an address (`Documentation/filesystems/proc.rst`, "VmFlags").
fn flags_at(address: u64) -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_it = false;
    for line in maps.lines() {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        if let Some((start, end)) = words[0].split_once('-') {
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            is_it = (number(start)..number(end)).contains(&address);
        } else if is_it && words[0] == "VmFlags:" {
            return words[1..].iter().map(ToString::to_string).collect();
        }
    }
    panic!("nothing is mapped at {address:#x}");
}

/// Returns how many pages of a machine's RAM are its own.
fn own_pages(ram: &GuestRam) -> u64 {
    let (_, size, host) = ram.regions().next().unwrap();
    let pagemap = ram.pagemap().unwrap();
    let own = sparse::touched(&pagemap, host, size, sparse::Present::Own).unwrap();
    own.iter()
        .map(|part| (part.end - part.start) / PAGE as u64)
        .sum()
}

#[test]
fn huge_pages_leave_out_blocks_that_clones_touch() {
    const MIB: u64 = 1 << 20;
    let folder = saved();
    let snapshot = Snapshot::open(folder.path()).unwrap();
    // All but the first and the last huge page, which hold something.
    let hole = 2 * MIB..30 * MIB;
    assert_eq!(snapshot.0.holes, std::slice::from_ref(&hole));
    let ram = restored(&snapshot);
    let (_, _, host) = ram.regions().next().unwrap();
    let flag = |at: u64, flag: &str| flags_at(host + at).iter().any(|other| other == flag);
    assert_eq!(own_pages(&ram), 0);
    // 12 MiB, and 0: each a page.
    fill(&ram, &[(3072, 1), (0, 1)]);
    let huge = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if !huge.is_ok_and(|huge| huge.contains("[always]")) {
        assert_eq!(own_pages(&ram), 2);
    }
    assert!([0, 4, 12, 31].iter().all(|at| !flag(at * MIB, "hg")));
    let touched = address(3072).0..address(3073).0;
    ram.use_huge_pages_beside(std::slice::from_ref(&touched));
    if Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        assert!([2, 11, 16, 29].iter().all(|at| flag(at * MIB, "hg")));
    }
    assert!([0, 12, 13, 15, 31].iter().all(|at| !flag(at * MIB, "hg")));
    assert!(
        [0, 4, 12, 31].iter().all(|at| flag(at * MIB, "dd")),
        "in dumps"
    );
    fill(&ram, &[(3073, 2), (3600, 3)]);
    assert_eq!(
        [3072, 3073, 3600, 1].map(|page| byte_of(&ram, page)),
        [1, 2, 3, 1]
    );
    assert_eq!(byte_of(&restored(&snapshot), 3072), 0);
}

#[test]
fn a_snapshot_that_is_open_outlives_its_folder() {
    let folder = saved();
    let snapshot = Snapshot::open(folder.path()).unwrap();
    save_ram(folder.path(), &ram_with(&[(1, 77)]), 8).unwrap();
    drop(folder);
    snapshot.verify().unwrap();
    assert_eq!(byte_of(&restored(&snapshot), 1), 1);
}

#[test]
fn files_that_are_no_snapshot_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        Snapshot::open(folder.path()).map(drop),
        Err(Error::File {
            what: Cow::Borrowed("snapshot"),
            ..
        })
    ));
    for (bytes, foreign) in [
        (&b"\x7fELF\x02\x01\x01"[..], true),
        (b"{\"version\": 1}", true),
        (b"", false),
    ] {
        fs::write(folder.path().join(SaveFiles::STATE), bytes).unwrap();
        let refused = refusal(folder.path());
        assert_eq!(
            matches!(refused, SnapshotError::Foreign),
            foreign,
            "{refused:?}"
        );
        assert_eq!(
            matches!(refused, SnapshotError::Truncated),
            !foreign,
            "{refused:?}"
        );
    }
}

#[test]
fn another_version_is_refused_by_name() {
    let mut file = state_file(&saved());
    file[8] = 3;
    assert!(matches!(file::decode(&file), Err(SnapshotError::Older(3))));
    file[8] = 5;
    assert!(matches!(file::decode(&file), Err(SnapshotError::Newer(5))));
}

#[test]
fn another_architecture_is_refused_by_name_before_anything_else() {
    for (machine, name) in [(0u16, "x86-64"), (183, "arm64"), (243, "number 243")] {
        let mut file = state_file(&saved());
        file[10..12].copy_from_slice(&machine.to_le_bytes());
        file[8] = 77;
        let refusal = file::decode(&file).unwrap_err().to_string();
        let own = machine == MACHINE;
        assert!(
            refusal.contains(if own { "format 77" } else { name }),
            "{refusal}"
        );
    }
}

/// Types that are saved have no names in the file, so nothing but this test notices when one of them changes.
#[test]
fn the_format_changes_with_its_version_only() {
    let digest = Sha256::digest(file::encode(&State::sample()));
    let digest: String = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let known = [(0, 4, "a6530851c2a9e583"), (183, 4, "9e0d291749f1d481")];
    let known = known.iter().find(|known| known.0 == MACHINE);
    assert_eq!(
        Some(&(MACHINE, file::VERSION, &*digest)),
        known,
        "raise VERSION, and set the digest here"
    );
}

#[test]
fn a_state_file_cut_anywhere_is_refused() {
    let file = state_file(&saved());
    for len in (0..file.len())
        .step_by(37)
        .chain([47, 48, 49, file.len() - 1])
    {
        assert!(
            matches!(file::decode(&file[..len]), Err(SnapshotError::Truncated)),
            "{len}"
        );
    }
    let longer = [&file[..], b"x"].concat();
    assert!(matches!(file::decode(&longer), Err(SnapshotError::Damaged)));
}

#[test]
fn a_state_file_with_any_bit_flipped_is_refused() {
    let mut file = state_file(&saved());
    // Every bit of the header, and one of each seventh byte of the body: the checksum has no favourites.
    let header = (0..48 * 8).collect::<Vec<_>>();
    let body = (48..file.len()).step_by(7).map(|at| at * 8 + at % 8);
    for bit in header.into_iter().chain(body) {
        file[bit / 8] ^= 1 << (bit % 8);
        assert!(file::decode(&file).is_err(), "bit {bit}");
        file[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(file::decode(&file).is_ok());
}

#[test]
fn a_senseless_state_is_refused_though_its_checksum_is_right() {
    let folder = saved();
    let refused = |change: fn(&mut State)| match with_state(&folder, change) {
        SnapshotError::Senseless(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(refused(|state| state.vcpus.clear()).contains("vCPUs"));
    assert!(
        refused(|state| state.vcpus.extend((0..8).map(|_| VcpuState::sample()))).contains("vCPUs")
    );
    let part = VcpuState::sample().spoil();
    let spoiled = refused(|state| {
        state.vcpus[0].spoil();
    });
    assert!(spoiled.contains(part));
    for uarts in [0, 1, 4, 1000] {
        let why = with_state(&folder, |state| {
            state.devices.uarts.resize_with(uarts, uart::State::default);
        });
        assert!(
            matches!(&why, SnapshotError::Senseless(why) if why.contains("UARTs")),
            "{uarts}: {why:?}"
        );
    }
    for bytes in [0, 4096, MEMORY + 1, 1 << 50, u64::MAX] {
        let why = with_state(&folder, |state| state.memory.bytes = bytes);
        assert!(
            matches!(&why, SnapshotError::Senseless(why) if why.contains("memory")),
            "{why:?}"
        );
    }
    let record = |path: &str, bytes| Record {
        path: path.into(),
        bytes,
        digest: [0; 32],
    };
    for pmem in [
        record("image", 0),
        record("image", (64 << 30) + 1),
        record("image", u64::MAX),
        record(&"x".repeat(20_000), 1),
    ] {
        let why = with_state(&folder, |state| state.pmem = Some(pmem));
        assert!(
            matches!(&why, SnapshotError::Senseless(why) if why.contains("persistent memory")),
            "{why:?}"
        );
    }
    for name in [
        "",
        "state",
        "memory-",
        "../memory-0123456789abcdef",
        "memory-../../../../etc",
        "memory-0123456789abcde/",
    ] {
        let why = with_state(&folder, |state| state.memory.name = name.into());
        assert!(
            matches!(&why, SnapshotError::Senseless(why) if why.contains("name")),
            "{name}: {why:?}"
        );
    }
}

proptest! {
    #[test]
    fn no_state_file_makes_the_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..4000)) {
        let file = file::with_body(&body);
        prop_assert!(file::decode(&file).is_err());
        prop_assert!(file::decode(&body).is_err());
    }

    #[test]
    fn no_change_of_a_state_makes_the_reader_panic(at in 0usize..9000, bytes in any::<[u8; 8]>()) {
        let file = file::encode(&State::sample());
        let mut body = file[48..].to_vec();
        let at = at % (body.len() - 8);
        body[at..at + 8].copy_from_slice(&bytes);
        if let Ok(state) = file::decode(&file::with_body(&body)) {
            prop_assert_eq!(state.check(), Ok(()));
        }
    }
}

#[test]
fn a_memory_file_of_the_wrong_size_is_refused() {
    let folder = saved();
    let path = memory_path(folder.path());
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    for found in [0, MEMORY - 4096, MEMORY + 1] {
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(found)
            .unwrap();
        let refused = refusal(folder.path());
        assert!(
            matches!(refused, SnapshotError::MemorySize { expected: MEMORY, found: is } if is == found),
            "{refused:?}"
        );
    }
    fs::remove_file(path).unwrap();
    assert!(matches!(
        Snapshot::open(folder.path()).map(drop),
        Err(Error::File { .. })
    ));
}

#[test]
fn a_memory_file_with_a_bit_flipped_is_refused() {
    for at in [0, 3 * PAGE as u64 + 77, 5 * PAGE as u64, MEMORY - 1] {
        let folder = saved();
        let path = memory_path(folder.path());
        flip(&path, at);
        assert!(
            matches!(refusal(folder.path()), SnapshotError::MemoryDamaged),
            "{at}"
        );
        // Flipped back, it is what was saved, though not at the time when it was saved.
        flip(&path, at);
        Snapshot::open(folder.path()).unwrap();
    }
}

fn flip(path: &Path, at: u64) {
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_memory_file_that_changes_while_it_is_open_is_noticed() {
    let folder = saved();
    let path = memory_path(folder.path());
    let snapshot = Snapshot::open(folder.path()).unwrap();
    let _mapped = restored(&snapshot);
    snapshot.check_unchanged().unwrap();
    flip(&path, 5 * PAGE as u64);
    assert!(matches!(
        snapshot.check_unchanged(),
        Err(Error::Snapshot {
            source: SnapshotError::MemoryChanged,
            ..
        })
    ));
    // Also when it was changed back.
    flip(&path, 5 * PAGE as u64);
    assert!(snapshot.check_unchanged().is_err());
    assert!(snapshot.verify().is_err());
}

#[test]
fn a_copied_snapshot_is_verified_and_opens() {
    let (folder, copy) = (saved(), tempfile::tempdir().unwrap());
    for file in [
        memory_path(folder.path()),
        folder.path().join(SaveFiles::STATE),
    ] {
        fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
    }
    let snapshot = Snapshot::open(copy.path()).unwrap();
    assert_ne!(snapshot.0.identity, snapshot.0.state.memory.identity);
    snapshot.check_unchanged().unwrap();
    assert_eq!(byte_of(&restored(&snapshot), 5), 5);
}

#[test]
fn a_folder_with_too_many_memory_files_is_refused() {
    let folder = saved();
    for number in 0..16 {
        fs::write(folder.path().join(format!("memory-{number:016x}")), "").unwrap();
    }
    let refused = Snapshot::open(folder.path()).map(drop).unwrap_err();
    let Error::File { source, .. } = refused else {
        panic!("{refused:?}")
    };
    assert!(source.to_string().contains("more than 16"), "{source}");
}

impl State {
    pub(crate) fn sample() -> Self {
        let memory = MemoryRecord {
            name: "memory-0123456789abcdef".into(),
            bytes: MEMORY,
            identity: Identity::sample(),
            digest: [7; 32],
        };
        State {
            memory,
            vcpus: vec![VcpuState::sample()],
            devices: Devices {
                uarts: vec![uart::State::default(); 3],
                ..Devices::default()
            },
            pmem: None,
        }
    }
}
