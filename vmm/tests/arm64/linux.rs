//! Linux, with an init of a few instructions. The kernel's file is named in the environment, by `MINIVM_TEST_ARM64_KERNEL`.

use std::fs;

use minivm_tests::given;
use minivm_vmm::{Config, Kernel, Outcome, Reset};

use crate::asm::{add, ldrb, mov};
use crate::run;

/// `svc #0`, with the call's number in X8.
const SVC: u32 = 0xd400_0001;
/// Numbers of system calls (`include/uapi/asm-generic/unistd.h`), and the commands of reboot(2).
const WRITE: u64 = 64;
const EXIT: u64 = 93;
const SCHED_GETAFFINITY: u64 = 123;
const REBOOT: u64 = 142;
const POWER_OFF: u64 = 0x4321_fedc;
const RESTART: u64 = 0x0123_4567;

/// Where the program is loaded. Its mapping may be written to.
const PROGRAM: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;
const BUFFER: u64 = PROGRAM + 0x800;

/// An init that writes a letter, A plus the mask of the processors that it may run on, and then does `last`.
fn init(last: &[u32]) -> Vec<u8> {
    let call = |number: u64| [mov(8, number), vec![SVC]].concat();
    let strb = 0x3900_0000 | 4 << 5 | 3;
    let code: Vec<u32> = [
        mov(0, 0),
        mov(1, 8),
        mov(2, BUFFER),
        call(SCHED_GETAFFINITY),
        mov(4, BUFFER),
        vec![ldrb(3, 4), add(3, u32::from(b'A')), strb],
        mov(0, 1),
        mov(1, BUFFER),
        mov(2, 1),
        call(WRITE),
        last.to_vec(),
    ]
    .concat();
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    for half in [2u16, 183] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    for word in [PROGRAM + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable, writable, executable.
    elf.extend(1u32.to_le_bytes());
    elf.extend(7u32.to_le_bytes());
    for word in [0, PROGRAM, PROGRAM, 0x1000, 0x1000, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code.iter().flat_map(|word| word.to_le_bytes()));
    elf.resize(0x1000, 0);
    elf
}

/// An initramfs with `/init` and the console's device (`Documentation/driver-api/early-userspace/buffer-format.rst`).
fn archive(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut entry = |name: &str, mode: u32, device: [u32; 2], data: &[u8]| {
        let len = |bytes: usize| u32::try_from(bytes).unwrap();
        let [major, minor] = device;
        let (size, name_size) = (len(data.len()), len(name.len() + 1));
        archive.extend(b"070701");
        for field in [1, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0] {
            archive.extend(format!("{field:08x}").bytes());
        }
        archive.extend(name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    entry("dev", 0o4_0755, [0, 0], &[]);
    entry("dev/console", 0o2_0600, [5, 1], &[]);
    entry("init", 0o10_0755, [0, 0], init);
    entry("TRAILER!!!", 0, [0, 0], &[]);
    archive
}

/// Boots the kernel with an init that ends with `last`; returns the outcome, and the letter.
fn booted(cpus: u8, last: &[u32]) -> (Outcome, char) {
    let folder = tempfile::tempdir().unwrap();
    let initramfs = folder.path().join("initramfs");
    fs::write(&initramfs, archive(&init(last))).unwrap();
    let config = Config {
        initramfs: Some(initramfs),
        cmdline: "console=ttyS0 quiet loglevel=0 panic=-1 reboot=panic_warm".into(),
        cpus,
        ..Config::new(Kernel::File(given::path("MINIVM_TEST_ARM64_KERNEL")))
    };
    let (outcome, output) = run(config);
    let letter = output.first().copied();
    (outcome.unwrap(), char::from(letter.unwrap_or(b'?')))
}

#[test]
#[ignore = "boots kernels"]
fn linux_boots_with_each_number_of_processors_and_ends_in_each_way() {
    let reboot = |command: u64| {
        let arguments = [mov(0, 0xfee1_dead), mov(1, 672_274_793), mov(2, command)];
        [arguments.concat(), mov(8, REBOOT), vec![SVC]].concat()
    };
    let exit = [mov(0, 3), mov(8, EXIT), vec![SVC]].concat();
    for (cpus, last, expected) in [
        (1, reboot(POWER_OFF), (Outcome::PowerOff, 'B')),
        (2, reboot(RESTART), (Outcome::Reboot(Reset::Line), 'D')),
        (4, exit, (Outcome::Panic(Reset::Line), 'P')),
    ] {
        assert_eq!(booted(cpus, &last), expected, "{cpus} vCPUs");
    }
}
