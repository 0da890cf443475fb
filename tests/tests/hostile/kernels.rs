//! Files that claim to be kernels: whatever is in them, loading them ends with an answer, never with a panic.

use minivm_tests::kernel_file::{BzImage, ELF_DATA};
use minivm_tests::stress;
use minivm_vmm::{Builder, Config, Error, Kernel, MEMORY_MIN};
use proptest::prelude::*;

use super::seeds::elf;

/// Offsets in a file, and what is written there.
type Changes = Vec<(usize, Vec<u8>)>;

/// Builds a machine of a kernel's file with these bytes. Where it is a good one, or there is no KVM, that isn't looked at.
fn build(file: &[u8]) -> Result<(), Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    std::fs::write(&path, file).unwrap();
    let config = Config {
        memory: MEMORY_MIN,
        cmdline: "quiet".into(),
        ..Config::new(Kernel::File(path))
    };
    Builder::new(config).build().map(|_| ())
}

/// The bytes where the formats' headers are, changed in a few places to values that parsers stumble over.
fn changes(headers: usize) -> impl Strategy<Value = Changes> {
    let field = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..=8),
        prop_oneof![
            Just(0_u64),
            Just(1),
            Just(u64::MAX),
            Just(1 << 63),
            any::<u64>()
        ]
        .prop_flat_map(|number| prop_oneof![Just(1), Just(2), Just(4), Just(8)]
            .prop_map(move |len| number.to_le_bytes()[..len].to_vec())),
    ];
    proptest::collection::vec((0..headers, field), 1..4)
}

fn changed(mut file: Vec<u8>, changes: Changes, len: f64) -> Vec<u8> {
    for (at, bytes) in changes {
        for (place, byte) in file[at..].iter_mut().zip(bytes) {
            *place = byte;
        }
    }
    // Most files stay whole.
    let kept = (file.len() as f64 * (len * 3.0).min(1.0)).round();
    let kept = (0..file.len()).find(|index| *index as f64 >= kept);
    file.truncate(kept.unwrap_or(file.len()));
    file
}

proptest! {
    #![proptest_config(ProptestConfig { cases: stress::count(170, 20_000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_refused(
        magic in prop_oneof![Just(&b""[..]), Just(&b"\x7fELF"[..]), Just(&b"\x7fELF\x02\x01\x01"[..])],
        bytes in proptest::collection::vec(any::<u8>(), 0..2048),
    ) {
        let refused = matches!(build(&[magic, &bytes].concat()), Err(Error::Kernel { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn a_changed_elf_file_is_loaded_or_refused(changes in changes(64 + 3 * 56), len in 0.0..1.0) {
        let _ = build(&changed(elf(), changes, len));
    }

    #[test]
    fn a_changed_note_is_loaded_or_refused(changes in changes(32)) {
        let notes = ELF_DATA + 0x200;
        let changes = changes.into_iter().map(|(at, bytes)| (notes + at, bytes)).collect();
        let _ = build(&changed(elf(), changes, 1.0));
    }

    #[test]
    fn a_changed_bzimage_is_loaded_or_refused(changes in changes(0x264 - 0x1f1), len in 0.0..1.0) {
        let changes = changes.into_iter().map(|(at, bytes)| (0x1f1 + at, bytes)).collect();
        let _ = build(&changed(BzImage::default().bytes(), changes, len));
    }
}

#[test]
fn the_files_that_are_changed_are_good_ones() {
    for file in [elf(), BzImage::default().bytes()] {
        let built = build(&file);
        assert!(
            !matches!(built, Err(Error::Kernel { .. } | Error::File { .. })),
            "{built:?}"
        );
    }
}
