//! Too little memory: by a limit on the address space, and by one of the control group's.

use minivm_machine::jail::Cgroup;
use minivm_tests::kernel_file::Elf;
use minivm_tests::patience::PATIENCE;
use minivm_tests::program::run;
use minivm_tests::stress;

use crate::Scene;

const MIB: usize = 1 << 20;

#[test]
fn an_address_space_that_is_too_small_is_refused_by_name() {
    let scene = Scene::new();
    let (mut refused, mut ran) = (0, 0);
    // From the least with which minivm starts at all, to more than enough.
    let step = stress::count(2 * MIB, MIB / 8);
    for limit in (256 * MIB..300 * MIB).step_by(step) {
        for which in ["--as", "--data"] {
            let words = ["prlimit", &format!("{which}={limit}")];
            let mut command = scene.boot(&words, "short");
            command.args(["--memory", "256M"]);
            let ended = run(&mut command, PATIENCE);
            let when = format!("{which}={limit}");
            scene.assert_nothing_stays(&when);
            if ended.code == Some(0) {
                assert_eq!((&*ended.text(), &*ended.stderr), (".", ""), "{when}");
                ran += 1;
            } else if ended.stderr.starts_with("memory allocation of ") {
                // Rust's own end, where a few bytes can't be had any more.
                assert_eq!(ended.signal, Some(6), "{when}: {ended:?}");
            } else if ended.stderr.contains("cannot start a thread") {
                // The stack of one has no room, which is the same number as too many threads.
                ended.assert_refused(&when, &["Resource temporarily unavailable"]);
                refused += 1;
            } else {
                ended.assert_refused(&when, &["Cannot allocate memory", "ulimit"]);
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && ran > 0, "{refused} refused, {ran} ran");
}

/// Writes to each page of 64 MiB from 32 MiB on, then a dot, and resets the machine.
#[rustfmt::skip]
const FILL: [u8; 27] = [
    0xbf, 0x00, 0x00, 0x00, 0x02,             // mov edi, 32 MiB
    0xb9, 0x00, 0x40, 0x00, 0x00,             // mov ecx, 16384
    0xc7, 0x07, 0x01, 0x00, 0x00, 0x00,       // again: mov dword [rdi], 1
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00,       // add edi, 4096
    0xff, 0xc9,                               // dec ecx
    0x75, 0xf0, 0x90,                         // jnz again; nop
];

#[test]
fn a_guest_that_outgrows_the_control_group_ends_alone() {
    let scene = Scene::new();
    let Some(group) = Cgroup::create(Some(24 << 20)) else {
        eprintln!("no control group can be made here");
        return;
    };
    let code: [&[u8]; 3] = [
        &FILL,
        &minivm_tests::code::show(b'.'),
        &minivm_tests::code::RESET,
    ];
    std::fs::write(scene.path("filling"), Elf::of_code(&code).bytes()).unwrap();
    let boot = |before: &[&str]| {
        let mut command = scene.boot(before, "filling");
        command.args(["--memory", "128M"]);
        command
    };
    let ended = run(&mut boot(&[]), PATIENCE);
    assert_eq!((ended.code, &*ended.text()), (Some(0), "."), "{ended:?}");
    let enter = entering(&group);
    let ended = run(&mut boot(&["sh", "-c", &enter, "sh"]), PATIENCE);
    // The kernel kills what has the guest's memory, which may be this process itself.
    let is_killed = ended.signal == Some(9);
    assert!(is_killed || ended.code == Some(125), "{ended:?}");
    assert!(
        !ended.stderr.contains("panicked") && ended.text() == "",
        "{ended:?}"
    );
    assert!(group.out_of_memory());
    scene.assert_nothing_stays("out of memory");
}

/// A shell's words that enter the group and become another program.
fn entering(group: &Cgroup) -> String {
    use std::os::fd::AsRawFd;
    let files = group.procs_files().unwrap();
    let path = |file: &std::fs::File| {
        std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
    };
    let writes = files
        .iter()
        .map(|file| format!("echo 0 > '{}'; ", path(file).display()));
    writes.collect::<String>() + "exec \"$@\""
}
