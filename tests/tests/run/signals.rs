//! Signals that minivm gets while a command runs.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use minivm_tests::program::{Program, ends_until};
use rustix::process::{Pid, Signal, kill_process};

use crate::guest::{PATIENCE, shell};

#[test]
fn signals_reach_the_command_and_the_end_is_its_own() {
    let script = "trap 'echo INT' INT; trap 'echo USR1' USR1; echo ready; \
                  while :; do sleep 1000 & wait $!; done";
    let mut program = Program::start(&mut shell(&[], script));
    program.wait_for("ready\n", PATIENCE);
    for _ in 0..2 {
        program.signal(Signal::USR1);
        program.wait_for("USR1\n", PATIENCE);
    }
    program.signal(Signal::INT);
    program.wait_for("INT\n", PATIENCE);
    drop(program);
    for (signal, name, code) in [(Signal::TERM, "TERM", 143), (Signal::INT, "INT", 130)] {
        // Nothing catches it.
        let mut program = Program::start(&mut shell(&[], "echo ready; exec sleep 1000"));
        program.wait_for("ready\n", PATIENCE);
        program.signal(signal);
        let ended = program.end(PATIENCE);
        assert_eq!(
            (ended.code, ended.stderr.as_str()),
            (Some(code), ""),
            "{name}"
        );
    }
    // The sleeper has to live on: of one that the signal ends with it, the shell may say so.
    let script = "trap '' HUP; sleep 1000 & trap 'echo HUP; exit 7' HUP; echo ready; while :; do wait $!; done";
    let mut program = Program::start(&mut shell(&[], script));
    program.wait_for("ready\n", PATIENCE);
    program.signal(Signal::HUP);
    let ended = program.end(PATIENCE);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(7), ""));
    assert_eq!(ended.text(), "ready\nHUP\n");
}

#[test]
fn a_second_interrupt_ends_the_machine() {
    let mut program = Program::start(&mut shell(
        &[],
        "trap 'echo no' INT; echo ready; while :; do :; done",
    ));
    program.wait_for("ready\n", PATIENCE);
    program.signal(Signal::INT);
    program.wait_for("no\n", PATIENCE);
    program.signal(Signal::INT);
    let ended = program.end(PATIENCE);
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
}

#[test]
fn a_signal_before_the_command_runs_is_not_lost() {
    // As from `timeout`, or a supervisor that changed its mind: whenever it comes, nothing goes on for ever.
    for wait in [100, 250, 400] {
        let program = Program::start(&mut shell(&[], "echo up; exec sleep 1000"));
        // The moments are those of the boot, whatever it is doing then: this waits for nothing in particular.
        thread::sleep(Duration::from_millis(wait));
        program.signal(Signal::TERM);
        let ended = program.end(PATIENCE);
        assert!(
            matches!((ended.code, ended.signal), (Some(143), _) | (_, Some(15))),
            "{wait} ms: {ended:?}"
        );
    }
}

/// The command has ended, and takes no signal any more; the pipe is full.
#[test]
fn one_signal_ends_a_run_whose_output_is_not_read() {
    let mut command = shell(&[], "head -c 200000 /dev/zero");
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let room = rustix::pipe::fcntl_getpipe_size(&stdout).unwrap() as u64;
    let limit = Instant::now() + PATIENCE;
    while rustix::io::ioctl_fionread(&stdout).unwrap() < room {
        assert!(Instant::now() < limit, "the pipe is never full");
        thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(ends_until(&child, Instant::now() + PATIENCE));
    let output = child.wait_with_output().unwrap();
    let told = "minivm: output was dropped: its reader had not taken it by the end\n";
    assert_eq!(output.status.code(), Some(143));
    assert_eq!(String::from_utf8_lossy(&output.stderr), told);
}
