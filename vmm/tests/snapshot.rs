//! Machines of a few bytes of code that are saved and continue: in this process, in another one, many times.
//!
//! They need a `/dev/kvm` that can run machine code in ring 0, as `machine_code.rs` does.

// Tests run: on any KVM

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minivm_tests::code::{RESET, SHOW, map, place, wake};
use minivm_tests::input::input;
use minivm_tests::output::tap;
use minivm_tests::snapshot::save_in;
use minivm_tests::stress;
use minivm_vmm::{
    Builder, Config, Control, Error, Kernel, Machine, Memory, Outcome, Prepared, Reset, Result,
    SaveFiles, Snapshot, SnapshotError, layout,
};
use sha2::{Digest, Sha256};

/// The limit for a hang, also in the lab, on a busy host.
const DEADLINE: Duration = Duration::from_secs(300);

/// A machine that runs on a thread of its own, until this is dropped at the latest.
struct Running {
    control: Control,
    output: Receiver<u8>,
    runner: Option<JoinHandle<Result<Outcome>>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.stop();
        let _ = self.runner.take().map(JoinHandle::join);
    }
}

impl Running {
    fn start(builder: Builder) -> Self {
        let (tap, output) = tap();
        let machine = builder.console_output(tap).build().unwrap();
        let control = machine.control();
        Running {
            control,
            output,
            runner: Some(std::thread::spawn(move || machine.run())),
        }
    }

    /// Returns the machine's next `count` bytes of output.
    fn read(&self, count: usize) -> Vec<u8> {
        (0..count)
            .map(|_| self.output.recv_timeout(DEADLINE).unwrap())
            .collect()
    }

    /// Runs the machine to its end; returns its output until then.
    fn finish(mut self) -> Vec<u8> {
        let start = Instant::now();
        while !self.control.has_ended() && start.elapsed() < DEADLINE {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.control.stop();
        assert_eq!(self.join(), Outcome::Reboot(Reset::Line));
        self.output.iter().collect()
    }

    fn join(&mut self) -> Outcome {
        self.runner.take().unwrap().join().unwrap().unwrap()
    }

    /// Stops the machine; returns its output that wasn't read.
    fn stop(mut self) -> Vec<u8> {
        self.control.stop();
        assert_eq!(self.join(), Outcome::Stopped);
        self.output.iter().collect()
    }
}

/// Saves a paused machine in place of a snapshot that may be in the folder.
fn save(control: &Control, folder: &Path) -> Result<()> {
    save_in(folder, |state, memory, name| {
        control.snapshot_into(&SaveFiles {
            state,
            memory,
            name,
        })
    })
}

/// Saves a machine that has not run.
fn save_unstarted(machine: &Machine, folder: &Path) {
    let saved = save_in(folder, |state, memory, name| {
        machine.snapshot_into(&SaveFiles {
            state,
            memory,
            name,
        })
    });
    saved.unwrap();
}

/// The number of bytes that [`computation`] writes before its sum.
const STEPS: u32 = 6000;

/// Returns a machine that runs `code`, with the rest as most tests here have it.
fn machine(code: &[&[u8]]) -> Config {
    Config {
        memory: 64 << 20,
        ..Config::new(Kernel::Code(code.concat()))
    }
}

/// A guest that writes a sequence of pseudo-random numbers' low bytes to COM1, sums the numbers up in memory, writes the sum,
/// and resets. Any loss of its registers, its memory or its output, and anything that is done twice, shows in its output.
fn computation() -> Config {
    #[rustfmt::skip]
    let code = [
        0xb8, 0x01, 0x00, 0x00, 0x00,                   // mov eax, 1
        0xbe, 0x70, 0x17, 0x00, 0x00,                   // mov esi, STEPS
        0x66, 0xba, 0xf8, 0x03,                         // mov dx, 0x3f8
        // again:
        0x89, 0xc1, 0xc1, 0xe1, 0x0d, 0x31, 0xc8,       // mov ecx, eax; shl ecx, 13; xor eax, ecx
        0x89, 0xc1, 0xc1, 0xe9, 0x11, 0x31, 0xc8,       // mov ecx, eax; shr ecx, 17; xor eax, ecx
        0x89, 0xc1, 0xc1, 0xe1, 0x05, 0x31, 0xc8,       // mov ecx, eax; shl ecx, 5; xor eax, ecx
        0xee,                                           // out dx, al
        0x01, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00,       // add [0x200000], eax
        0xff, 0xce, 0x75, 0xdf,                         // dec esi; jnz again
        0x8b, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00,       // mov eax, [0x200000]
        0xee, 0xc1, 0xe8, 0x08,                         // out dx, al; shr eax, 8
        0xee, 0xc1, 0xe8, 0x08,                         // out dx, al; shr eax, 8
        0xee, 0xc1, 0xe8, 0x08,                         // out dx, al; shr eax, 8
        0xee,                                           // out dx, al
        0xb0, 0xfe, 0xe6, 0x64,                         // mov al, 0xfe; out 0x64, al
    ];
    machine(&[&code])
}

/// Returns the output of [`computation`].
fn computed() -> Vec<u8> {
    let (mut number, mut sum) = (1u32, 0u32);
    let mut output = Vec::new();
    for _ in 0..STEPS {
        number ^= number << 13;
        number ^= number >> 17;
        number ^= number << 5;
        sum = sum.wrapping_add(number);
        output.push(number.to_le_bytes()[0]);
    }
    output.extend(sum.to_le_bytes());
    output
}

/// How often a machine is made that may end before it is saved.
const ATTEMPTS: usize = 50;

/// Runs a machine until it has written `count` bytes or a few more, saves it, and stops it; returns its output.
///
/// On a busy host the machine may have ended before it is paused; then another one is tried.
fn saved_after(count: usize, mut builder: impl FnMut() -> Builder, folder: &Path) -> Vec<u8> {
    for _ in 0..ATTEMPTS {
        let running = Running::start(builder());
        let mut output = running.read(count);
        running.control.pause();
        match save(&running.control, folder) {
            Err(Error::NotPaused) => continue,
            saved => saved.unwrap(),
        }
        output.extend(running.stop());
        return output;
    }
    panic!("it always ends before it can be saved");
}

#[test]
fn a_restored_machine_continues_where_it_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    for count in [1, 2, 500, 3000] {
        let mut output = saved_after(count, || Builder::new(computation()), folder.path());
        assert!(output.len() < STEPS as usize + 4, "it was saved too late");
        let snapshot = Snapshot::open(folder.path()).unwrap();
        output.extend(Running::start(Builder::restore(&snapshot)).finish());
        assert_eq!(output, computed(), "saved after {count}");
    }
}

/// This test runs in two processes: the other one gets the snapshot's folder, and a file for the output.
#[test]
fn it_goes_on_in_another_process_wherever_it_was_saved() {
    let name = "it_goes_on_in_another_process_wherever_it_was_saved";
    if let Some(folder) = std::env::var_os("MINIVM_TEST_SNAPSHOT") {
        let snapshot = Snapshot::open(&folder).unwrap();
        let output = Running::start(Builder::restore(&snapshot)).finish();
        fs::write(Path::new(&folder).join("output"), output).unwrap();
        return;
    }
    let rounds = stress::count(20, 500);
    for round in 0..rounds {
        let folder = tempfile::tempdir().unwrap();
        let mut output = saved_after(
            1 + round * 3000 / rounds,
            || Builder::new(computation()),
            folder.path(),
        );
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env("MINIVM_TEST_SNAPSHOT", folder.path())
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        output.extend(fs::read(folder.path().join("output")).unwrap());
        assert_eq!(output, computed(), "round {round}");
    }
}

/// Checks the bytes that a second vCPU has written to COM2: they are consecutive, from 1 on.
fn assert_consecutive(bytes: &[u8]) {
    for (at, byte) in bytes.iter().enumerate() {
        assert_eq!(usize::from(*byte), (at + 1) % 256, "at {at}");
    }
}

/// A machine whose first vCPU does the [`computation`] and whose second one counts on COM2 meanwhile.
fn two_at_work() -> Config {
    let count = [
        0x31, 0xc0, //                   xor ax, ax (in real mode)
        0xba, 0xf8, 0x02, //             mov dx, 0x2f8
        0xfe, 0xc0, 0xee, 0xeb, 0xfb, // again: inc al; out dx, al; jmp again
    ];
    let start = [
        map(layout::LOCAL_APIC.0),
        place(0x3_0000, &count),
        wake(0x30),
    ]
    .concat();
    let Kernel::Code(compute) = computation().kernel else {
        unreachable!("it is code")
    };
    Config {
        cpus: 2,
        ..machine(&[&start, &compute])
    }
}

#[test]
fn two_vcpus_continue() {
    // The host decides when the second one gets a processor: on a busy one it may not have begun when the machine is saved, or
    // be done. Its bytes are checked in any case.
    let both_at_work = |count| (0..20).any(|_| two_vcpus_are_saved_after(count));
    assert!(both_at_work(100) && both_at_work(2000));
}

/// Saves after the first one has written `count` bytes; returns whether the second was at work before and after.
fn two_vcpus_are_saved_after(count: usize) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let mut taps = None;
    let two = || {
        let (tap, counted) = tap();
        taps = Some(counted);
        Builder::new(two_at_work()).com2_output(tap)
    };
    let mut output = saved_after(count, two, folder.path());
    let counted = taps.unwrap();
    let mut numbers: Vec<u8> = counted.iter().collect();
    let before = numbers.len();
    let (tap, counted) = tap();
    let snapshot = Snapshot::open(folder.path()).unwrap();
    assert_eq!(snapshot.cpus(), 2);
    output.extend(Running::start(Builder::restore(&snapshot).com2_output(tap)).finish());
    numbers.extend(counted.iter());
    assert_eq!(output, computed());
    assert_consecutive(&numbers);
    before > 0 && numbers.len() > before
}

#[test]
fn a_vcpu_that_was_not_started_yet_can_be_started() {
    let say = [
        0xb0, b'A', 0xba, 0xf8, 0x03,
        0xee, // mov al, 'A'; mov dx, 0x3f8; out dx, al (in real mode)
        0xb0, 0xfe, 0xe6, 0x64, //             mov al, 0xfe; out 0x64, al
    ];
    let prepare = [map(layout::LOCAL_APIC.0), place(0x3_0000, &say)].concat();
    // It writes for long enough to be paused meanwhile on a busy host.
    // mov dx, 0x3f8; mov ecx, 30000; again: mov al, '.'; out dx, al; dec ecx; jnz again
    let talk = [
        0x66, 0xba, 0xf8, 0x03, 0xb9, 0x30, 0x75, 0, 0, 0xb0, b'.', 0xee, 0xff, 0xc9, 0x75, 0xf9,
    ];
    let config = Config {
        cpus: 2,
        ..machine(&[&prepare, &talk, &wake(0x30), &[0xfa, 0xf4]])
    };
    let folder = tempfile::tempdir().unwrap();
    let before = saved_after(10, || Builder::new(config.clone()), folder.path());
    let snapshot = Snapshot::open(folder.path()).unwrap();
    let after = Running::start(Builder::restore(&snapshot)).finish();
    assert_eq!(
        [before, after].concat(),
        [vec![b'.'; 30000], vec![b'A']].concat()
    );
}

#[test]
fn a_saved_machine_runs_on_itself() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(Builder::new(computation()));
    let mut output = Vec::new();
    for _ in 0..20 {
        output.extend(running.read(50));
        running.control.pause();
        match save(&running.control, folder.path()) {
            // A busy host may let it come to its end meanwhile.
            Err(Error::NotPaused) => break,
            saved => saved.unwrap(),
        }
        running.control.resume();
    }
    output.extend(running.finish());
    assert_eq!(output, computed());
}

#[test]
fn clones_diverge_and_can_be_cloned() {
    // mov dx, 0x3f8; mov al, '>'; out dx, al; then a byte of input decides: it is added to memory for ever.
    let ask = [
        0x66, 0xba, 0xf9, 0x03, 0xb0, 0x01,
        0xee, // mov dx, 0x3f9; mov al, 1; out dx, al: interrupt on received data
        0x66, 0xba, 0xfc, 0x03, 0xb0, 0x02,
        0xee, // mov dx, 0x3fc; mov al, 2; out dx, al: request to send
        0x66, 0xba, 0xf8, 0x03, 0xb0, b'>', 0xee, // mov dx, 0x3f8; mov al, '>'; out dx, al
        0x66, 0xba, 0xfd, 0x03,
        0xec, //             again: mov dx, 0x3fd; in al, dx: the line status
        0xa8, 0x01, 0x74, 0xf7, //                   test al, 1; jz again
        0x66, 0xba, 0xf8, 0x03, 0xec, //             mov dx, 0x3f8; in al, dx
        0x00, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, // add [0x200000], al
        0x8a, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, // mov al, [0x200000]
        0xee, 0xeb, 0xe1, //                         out dx, al; jmp again
    ];
    let (folder, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    saved_after(1, || Builder::new(machine(&[&ask])), folder.path());
    let snapshot = Snapshot::open(folder.path()).unwrap();
    let clones: Vec<_> = (1..=8u8)
        .map(|number| {
            let input = input(&[number; 10]);
            (
                number,
                Running::start(Builder::restore(&snapshot).console_input(input)),
            )
        })
        .collect();
    for (number, clone) in &clones {
        let expected: Vec<u8> = (1..=10).map(|times| times * number).collect();
        assert_eq!(clone.read(10), expected, "clone {number}");
    }
    let (number, clone) = clones.into_iter().last().unwrap();
    clone.control.pause();
    save(&clone.control, second.path()).unwrap();
    clone.stop();
    let input = input(&[1]);
    let grandchild = Running::start(
        Builder::restore(&Snapshot::open(second.path()).unwrap()).console_input(input),
    );
    assert_eq!(grandchild.read(1), [10 * number + 1]);
    grandchild.stop();
}

#[test]
fn machines_made_ahead_continue_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let before = saved_after(100, || Builder::new(computation()), folder.path());
    let snapshot = Snapshot::open(folder.path()).unwrap();
    let ahead: Vec<_> = (0..5).map(|_| snapshot.prepare().unwrap()).collect();
    for prepared in ahead {
        let after = Running::start(Builder::restore_prepared(prepared)).finish();
        assert_eq!([&before[..], &after].concat(), computed());
    }
}

#[test]
fn machines_can_be_made_on_one_thread_and_run_on_another() {
    fn shared<T: Send + Sync>() {}
    fn handed_over<T: Send>() {}
    shared::<Snapshot>();
    handed_over::<Prepared>();
    handed_over::<Builder>();
}

#[test]
fn a_machine_that_has_not_run_can_be_saved() {
    let folder = tempfile::tempdir().unwrap();
    save_unstarted(&Builder::new(computation()).build().unwrap(), folder.path());
    let snapshot = Snapshot::open(folder.path()).unwrap();
    // This one has not run either, so it can be saved as well.
    save_unstarted(&Builder::restore(&snapshot).build().unwrap(), folder.path());
    let snapshot = Snapshot::open(folder.path()).unwrap();
    assert_eq!(
        Running::start(Builder::restore(&snapshot)).finish(),
        computed()
    );
}

/// Code that waits until the UART at `port` has input.
fn wait_for_input(port: u16) -> Vec<u8> {
    let at = |register: u16| {
        let [low, high] = (port + register).to_le_bytes();
        [0x66, 0xba, low, high] // mov dx, port + register
    };
    [
        &at(1)[..],
        &[0xb0, 0x01, 0xee], // mov al, 1; out dx, al: interrupt on received data
        &at(4),
        &[0xb0, 0x02, 0xee], // mov al, 2; out dx, al: request to send
        &at(5),
        &[0xec, 0xa8, 0x01, 0x74, 0xfb], // wait: in al, dx; test al, 1; jz wait
    ]
    .concat()
}

/// Code that reads a byte from the UART at `port`, and writes it to COM1.
fn show_input(port: u16) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    [&[0x66, 0xba, low, high, 0xec][..], &SHOW].concat() // mov dx, port; in al, dx
}

#[test]
fn input_that_the_guest_has_not_taken_yet_is_saved() {
    // mov dx, 0x3f8; mov al, '.'; mov ecx, 30000: long enough to be paused meanwhile; talk: out dx, al; dec ecx; jnz talk
    let talk = [
        0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xb9, 0x30, 0x75, 0, 0, 0xee, 0xff, 0xc9, 0x75, 0xfb,
    ];
    type Connect = fn(Builder, fs::File) -> Builder;
    let uarts: [(u16, Connect); 2] = [
        (layout::COM1_PORT, Builder::console_input),
        (layout::COM3_PORT, Builder::com3_input),
    ];
    for (port, connect) in uarts {
        let show = show_input(port);
        let config = Config {
            com3: port == layout::COM3_PORT,
            ..machine(&[&wait_for_input(port), &talk, &show, &show, &RESET])
        };
        let folder = tempfile::tempdir().unwrap();
        let waiting = || connect(Builder::new(config.clone()), input(b"hi"));
        let before = saved_after(500, waiting, folder.path());
        let snapshot = Snapshot::open(folder.path()).unwrap();
        let after = Running::start(Builder::restore(&snapshot)).finish();
        assert_eq!(
            [before, after].concat(),
            [vec![b'.'; 30000], b"hi".to_vec()].concat(),
            "{port:#x}"
        );
    }
}

#[test]
fn a_snapshot_has_com3_where_its_machine_had_it() {
    let (wait, show) = (
        wait_for_input(layout::COM3_PORT),
        show_input(layout::COM3_PORT),
    );
    for (com3, code) in [
        (true, [&wait[..], &show, &RESET]),
        (false, [&[], &show, &RESET]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            com3,
            ..machine(&code)
        };
        save_unstarted(&Builder::new(config).build().unwrap(), folder.path());
        let snapshot = Snapshot::open(folder.path()).unwrap();
        let prepared = Builder::restore_prepared(snapshot.prepare().unwrap());
        for builder in [Builder::restore(&snapshot), prepared] {
            let output = Running::start(builder.com3_input(input(b"x"))).finish();
            assert_eq!(output, if com3 { b"x" } else { &[0xff] }, "{com3}");
        }
    }
}

#[test]
fn only_a_paused_machine_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(Builder::new(machine(&[&[
        0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfe,
    ]])));
    let control = running.control.clone();
    running.read(1);
    assert!(matches!(
        save(&control, folder.path()),
        Err(Error::NotPaused)
    ));
    control.pause();
    save(&control, folder.path()).unwrap();
    running.stop();
    assert!(matches!(
        save(&control, folder.path()),
        Err(Error::NotPaused)
    ));
    Snapshot::open(folder.path()).unwrap();
}

#[test]
fn a_memory_file_that_changes_while_mapped_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    saved_after(100, || Builder::new(computation()), folder.path());
    let snapshot = Snapshot::open(folder.path()).unwrap();
    let prepared = snapshot.prepare().unwrap();
    let memory = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let memory = memory
        .filter(|path| path.to_str().unwrap().contains("memory-"))
        .last()
        .unwrap();
    fs::set_permissions(&memory, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut bytes = fs::OpenOptions::new().write(true).open(&memory).unwrap();
    bytes.write_all(&[0xf4]).unwrap();
    for builder in [
        Builder::restore_prepared(prepared),
        Builder::restore(&snapshot),
    ] {
        let refused = builder.build().map(drop);
        assert!(
            matches!(
                refused,
                Err(Error::Snapshot {
                    source: SnapshotError::MemoryChanged,
                    ..
                })
            ),
            "{refused:?}"
        );
    }
}

#[test]
fn a_feature_that_the_host_lacks_is_named() {
    let folder = tempfile::tempdir().unwrap();
    saved_after(100, || Builder::new(computation()), folder.path());
    let path = folder.path().join("state");
    let mut state = fs::read(&path).unwrap();
    // The entry of CPUID's leaf 7.0, by its function, its index, and the flag that says that the index counts.
    let leaf = [7u32, 0, 1].map(u32::to_le_bytes).concat();
    let at = state.windows(12).position(|window| window == leaf).unwrap();
    // EBX, bit 2: SGX, which KVM offers to no guest of its own accord.
    state[at + 16] |= 1 << 2;
    let (header, body) = (state[..16].to_vec(), state[48..].to_vec());
    state[16..48].copy_from_slice(
        &Sha256::new()
            .chain_update(header)
            .chain_update(body)
            .finalize(),
    );
    fs::write(&path, state).unwrap();
    let snapshot = Snapshot::open(folder.path()).unwrap();
    let refused = Builder::restore(&snapshot).build().map(drop).unwrap_err();
    assert!(
        refused
            .to_string()
            .starts_with("this host has no sgx, which the snapshot needs"),
        "{refused}"
    );
}

/// This test runs in two processes: the other one has a file system of 16 MiB to itself.
#[test]
fn a_string_instruction_continues_from_its_middle() {
    const COUNT: u32 = 30_000;
    let [a, b, c, d] = COUNT.to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xbf, 0x00, 0x00, 0x20, 0x00,                 // mov edi, 0x200000
        0xb9, a, b, c, d,                             // mov ecx, COUNT
        0x88, 0x0f, 0xff, 0xc7, 0xff, 0xc9, 0x75, 0xf8, // again: mov [rdi], cl; inc edi; dec ecx; jnz again
        0xbe, 0x00, 0x00, 0x20, 0x00,                 // mov esi, 0x200000
        0xb9, a, b, c, d,                             // mov ecx, COUNT
        0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e,           // mov dx, 0x3f8; rep outsb
        0xb0, 0xfe, 0xe6, 0x64,                       // mov al, 0xfe; out 0x64, al
    ];
    let expected: Vec<u8> = (1..=COUNT)
        .rev()
        .map(|number| number.to_le_bytes()[0])
        .collect();
    let folder = tempfile::tempdir().unwrap();
    for count in [1, 1000, 10_000] {
        // A pause lets up to 1024 bytes more through: on a busy host it may be all that are left.
        let save = || saved_after(count, || Builder::new(machine(&[&code])), folder.path());
        let mut saved = (0..ATTEMPTS).map(|_| save());
        let output = saved.find(|output| output.len() < expected.len());
        let mut output = output.expect("it is saved in time");
        let snapshot = Snapshot::open(folder.path()).unwrap();
        output.extend(Running::start(Builder::restore(&snapshot)).finish());
        assert!(
            output == expected,
            "{} bytes instead of {COUNT}, saved after {count}",
            output.len()
        );
    }
}

/// The address at which a [`vector_computation`] keeps how many numbers are left to compute; the last number follows.
const LEFT: u64 = 0x18_0000;

/// The [`computation`]'s sequence, computed four- or eightfold in a vector register, in ring 3: even a KVM that emulates ring
/// 0 runs ring 3 on the processor. Ring 0 opens the first 2 MiB to ring 3, switches SSE or AVX on, and goes there; ring 3
/// ends with an instruction that it may not run.
#[rustfmt::skip]
fn vector_computation(numbers: u32, avx: bool) -> Config {
    let common = [
        &[0x48, 0x83, 0x0c, 0x25, 0x00, 0x90, 0x00, 0x00, 0x04][..], // or qword [PML4], 4: user
        &[0x48, 0x83, 0x0c, 0x25, 0x00, 0xa0, 0x00, 0x00, 0x04],     // or qword [PDPT], 4
        &[0x48, 0x83, 0x0c, 0x25, 0x00, 0xb0, 0x00, 0x00, 0x04],     // or qword [PD], 4
        &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8],                       // mov rax, cr3; mov cr3, rax
        &[0xb9, 0x80, 0x00, 0x00, 0xc0],                             // mov ecx, EFER
        &[0x0f, 0x32, 0x83, 0xc8, 0x01, 0x0f, 0x30],                 // rdmsr; or eax, SCE; wrmsr
        &[0xb9, 0x81, 0x00, 0x00, 0xc0, 0x31, 0xc0],                 // mov ecx, STAR; xor eax, eax
        &[0xba, 0x10, 0x00, 0x23, 0x00, 0x0f, 0x30],                 // mov edx, 0x230010 (the selectors); wrmsr
        &[0x0f, 0x20, 0xe0, 0x0d, 0x00, 0x06, 0x00, 0x00],           // mov rax, cr4; or eax, OSFXSR | OSXMMEXCPT
        &[0x0f, 0x22, 0xe0],                                         // mov cr4, rax
    ].concat();
    let switch_avx_on = [
        0x0f, 0x20, 0xe0, 0x0d, 0x00, 0x00, 0x04, 0x00,              // mov rax, cr4; or eax, OSXSAVE
        0x0f, 0x22, 0xe0,                                            // mov cr4, rax
        0x31, 0xc9, 0xb8, 0x07, 0x00, 0x00, 0x00,                    // xor ecx, ecx; mov eax, 7 (x87, SSE, AVX)
        0x31, 0xd2, 0x0f, 0x01, 0xd1,                                // xor edx, edx; xsetbv
    ];
    let go_to = |user: u32| [
        &[0xb9][..], &user.to_le_bytes(),                            // mov ecx, user
        &[0x41, 0xbb, 0x02, 0x00, 0x00, 0x00],                       // mov r11d, 2 (RFLAGS)
        &[0x48, 0x0f, 0x07],                                         // sysretq
    ].concat();
    let start = [
        &[0xb8, 0x01, 0x00, 0x00, 0x00][..],                         // mov eax, 1
        &[0xbe], &numbers.to_le_bytes(),                             // mov esi, numbers
        &[0xbf, 0x00, 0x00, 0x18, 0x00],                             // mov edi, LEFT
    ].concat();
    let with_avx = [
        0xc5, 0xf9, 0x6e, 0xc0, 0xc4, 0xe2, 0x7d, 0x58, 0xc0,        // vmovd xmm0, eax; vpbroadcastd ymm0, xmm0
        0xc5, 0xed, 0x72, 0xf0, 0x0d, 0xc5, 0xfd, 0xef, 0xc2,        // again: vpslld ymm2, ymm0, 13; vpxor ymm0, ymm0, ymm2
        0xc5, 0xed, 0x72, 0xd0, 0x11, 0xc5, 0xfd, 0xef, 0xc2,        // vpsrld ymm2, ymm0, 17; vpxor ymm0, ymm0, ymm2
        0xc5, 0xed, 0x72, 0xf0, 0x05, 0xc5, 0xfd, 0xef, 0xc2,        // vpslld ymm2, ymm0, 5; vpxor ymm0, ymm0, ymm2
        0x89, 0x37, 0xff, 0xce, 0x75, 0xdf,                          // mov [rdi], esi; dec esi; jnz again
        0xc4, 0xe3, 0x7d, 0x39, 0xc3, 0x01,                          // vextracti128 xmm3, ymm0, 1
        0xc5, 0xf9, 0x7e, 0x5f, 0x04, 0xf4,                          // vmovd [rdi + 4], xmm3; hlt
    ];
    let with_sse = [
        0x66, 0x0f, 0x6e, 0xc0, 0x66, 0x0f, 0x70, 0xc0, 0x00,        // movd xmm0, eax; pshufd xmm0, xmm0, 0
        0x66, 0x0f, 0x6f, 0xd0, 0x66, 0x0f, 0x72, 0xf2, 0x0d,        // again: movdqa xmm2, xmm0; pslld xmm2, 13
        0x66, 0x0f, 0xef, 0xc2,                                      // pxor xmm0, xmm2
        0x66, 0x0f, 0x6f, 0xd0, 0x66, 0x0f, 0x72, 0xd2, 0x11,        // movdqa xmm2, xmm0; psrld xmm2, 17
        0x66, 0x0f, 0xef, 0xc2,                                      // pxor xmm0, xmm2
        0x66, 0x0f, 0x6f, 0xd0, 0x66, 0x0f, 0x72, 0xf2, 0x05,        // movdqa xmm2, xmm0; pslld xmm2, 5
        0x66, 0x0f, 0xef, 0xc2,                                      // pxor xmm0, xmm2
        0x89, 0x37, 0xff, 0xce, 0x75, 0xd3,                          // mov [rdi], esi; dec esi; jnz again
        0x66, 0x0f, 0x70, 0xd8, 0xff,                                // pshufd xmm3, xmm0, 0xff
        0x66, 0x0f, 0x7e, 0x5f, 0x04, 0xf4,                          // movd [rdi + 4], xmm3; hlt
    ];
    let (switch, compute) = if avx { (&switch_avx_on[..], &with_avx[..]) } else { (&[][..], &with_sse[..]) };
    let kernel = common.len() + switch.len() + go_to(0).len();
    let user = go_to(u32::try_from(layout::HIGH_RAM.0 + kernel as u64).unwrap());
    machine(&[&common, switch, &user, &start, compute])
}

/// Returns how many numbers a [`vector_computation`] has left to compute, and the last number when none is left.
fn progress(memory: &Memory) -> (u32, u32) {
    (memory.load(LEFT).unwrap(), memory.load(LEFT + 4).unwrap())
}

/// Saves a [`vector_computation`] once it has at most `left` numbers left; returns whether it had not ended by then.
fn saves_vectors(config: Config, left: u32, folder: &Path) -> bool {
    let machine = Builder::new(config).build().unwrap();
    let (control, memory) = (machine.control(), machine.memory());
    let runner = std::thread::spawn(move || machine.run());
    while !(1..=left).contains(&progress(&memory).0) {
        std::thread::yield_now();
    }
    control.pause();
    let saved = match save(&control, folder) {
        Err(Error::NotPaused) => false,
        saved => {
            saved.unwrap();
            progress(&memory).1 == 0
        }
    };
    control.stop();
    runner.join().unwrap().unwrap();
    saved
}

/// Runs a [`vector_computation`] to its end; returns the last number.
fn last_number(builder: Builder) -> u32 {
    let machine = builder.build().unwrap();
    let memory = machine.memory();
    assert_eq!(machine.run().unwrap(), Outcome::TripleFault);
    let (left, number) = progress(&memory);
    assert_eq!(left, 1);
    number
}

fn vector_registers_continue(numbers: u32, avx: bool) {
    let expected = (0..numbers).fold(1u32, |mut number, _| {
        number ^= number << 13;
        number ^= number >> 17;
        number ^ number << 5
    });
    assert_eq!(
        last_number(Builder::new(vector_computation(numbers, avx))),
        expected
    );
    let folder = tempfile::tempdir().unwrap();
    for done in [1, numbers / 32, numbers / 4] {
        // On a busy host a machine may have ended before it is paused.
        let save = || {
            let config = vector_computation(numbers, avx);
            saves_vectors(config, numbers - done, folder.path())
        };
        assert!((0..ATTEMPTS).any(|_| save()), "it is saved in time");
        let snapshot = Snapshot::open(folder.path()).unwrap();
        assert_eq!(
            last_number(Builder::restore(&snapshot)),
            expected,
            "saved after {done}"
        );
    }
}

#[test]
fn the_widest_vector_registers_continue() {
    // The lab's processor has no AVX, and is slow.
    match is_x86_feature_detected!("avx2") {
        true => vector_registers_continue(30_000_000, true),
        false => vector_registers_continue(1_000_000, false),
    }
}
