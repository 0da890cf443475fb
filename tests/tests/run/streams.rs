//! What goes in and what comes out.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use minivm_tests::patience::with_limits_from;
use minivm_tests::program::{Program, ends_until};

use crate::guest::{
    PATIENCE, assert_well, debians_kernel, end_of, fed, noise, our_kernel, run, run_image, scratch,
    shell, shell_text, small_root, text_of,
};

/// Size of what goes through the rings, and through the UART.
const MUCH: usize = 10_000_001;
const LITTLE: usize = 4099;

#[test]
fn python_prints_4_and_nothing_else() {
    let initramfs = std::env::var("MINIVM_TEST_INITRAMFS").unwrap();
    let rootfs = Path::new(&initramfs).with_file_name("rootfs");
    let image = format!("dir:{}", rootfs.display());
    let python = ["python3", "-S", "-c", "print(2+2)"];
    let command = run_image(&image, our_kernel(), &[], &python);
    assert_eq!(text_of(command), "4\n");
}

#[test]
fn a_stock_kernel_prints_4_and_takes_a_megabyte_through_the_rings() {
    let sent = noise(1 << 20);
    let image = format!("dir:{}", small_root().display());
    let script = ["sh", "-c", "echo $((2+2)); cat"];
    let ended = fed(
        run_image(&image, debians_kernel(), &["-i", "--verbose"], &script),
        &sent,
    );
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("no rings"), "{}", ended.stderr);
    let received = ended.stdout.strip_prefix(b"4\n").unwrap();
    assert!(received == sent, "{} bytes of other", received.len());
}

#[test]
fn ten_megabytes_come_back_as_they_went() {
    let sent = noise(MUCH);
    for cpus in ["1", "2"] {
        let ended = fed(run(&["-i", "--cpus", cpus], &["cat"]), &sent);
        assert_well(&ended);
        assert!(ended.stdout == sent, "{} bytes", ended.stdout.len());
    }
}

#[test]
fn without_rings_the_uart_carries_everything() {
    let sent = noise(LITTLE);
    let script = "tee /dev/stderr; echo $? >&2";
    let ended = fed(shell(&["-i", "--no-rings"], script), &sent);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout == sent, "{} bytes", ended.stdout.len());
    assert!(ended.stderr.ends_with("0\n"), "{}", ended.stderr);
}

#[test]
fn stdout_and_stderr_stay_apart_and_in_order() {
    let script = "n=0; while [ $n -lt 1000 ]; do echo out $n; echo err $n >&2; n=$((n + 1)); done";
    let ended = end_of(shell(&[], script));
    let lines = |stream: &str| -> String {
        (0..1000)
            .map(|number| format!("{stream} {number}\n"))
            .collect()
    };
    assert_eq!(ended.code, Some(0));
    assert_eq!(ended.text(), lines("out"));
    assert_eq!(ended.stderr, lines("err"));
}

#[test]
fn a_hundred_thousand_short_writes_lose_nothing() {
    let script = "n=0; while [ $n -lt 100000 ]; do echo $n; n=$((n + 1)); done";
    let text = shell_text(&[], script);
    let lines: String = (0..100_000).map(|number| format!("{number}\n")).collect();
    assert!(text == lines, "{} bytes of {}", text.len(), lines.len());
}

#[test]
fn a_line_is_answered_before_the_input_ends() {
    let script = "while read line; do echo got $line; done; echo end";
    let mut program = Program::start(&mut shell(&["-i"], script));
    for number in 0..3 {
        program.write(format!("{number}\n").as_bytes()).unwrap();
        program.wait_for(&format!("got {number}\n"), PATIENCE);
    }
    program.stdin = None;
    let ended = program.end(PATIENCE);
    assert_well(&ended);
    assert_eq!(ended.text(), "got 0\ngot 1\ngot 2\nend\n");
}

#[test]
fn a_long_command_line_arrives_and_one_too_long_is_refused() {
    // Longer than a ring, and made of many words: Linux takes no single one of more than 128 KiB.
    let word = "0123456789".repeat(1000);
    let words = vec![word.as_str(); 60];
    let ended = end_of(run(
        &[],
        &[&["sh", "-c", "echo $# ${#60}", "sh"], &words[..]].concat(),
    ));
    assert_well(&ended);
    assert_eq!(ended.text(), "60 10000\n");
    let ended = end_of(run(&[], &[&["echo"], &words[..], &words[..]].concat()));
    assert_eq!(ended.code, Some(125), "{}", ended.stderr);
    let said = "minivm: the command, its environment and its user are too long: ";
    assert!(ended.stderr.starts_with(said), "{}", ended.stderr);
}

#[test]
fn without_dash_i_stdin_is_empty() {
    let ended = fed(run(&[], &["wc", "-c"]), b"not for you");
    assert_well(&ended);
    assert_eq!(ended.text(), "0\n");
}

#[test]
fn input_that_nobody_reads_holds_nothing_up() {
    let sent = noise(MUCH);
    for script in [
        // Never reads, closes at once, takes a little.
        "echo done",
        "exec <&-; echo done; exec true",
        "head -c 300000 >/dev/null; exec <&-; echo done",
    ] {
        let ended = fed(shell(&["-i"], script), &sent);
        assert_well(&ended);
        assert_eq!(ended.text(), "done\n", "{script}");
    }
}

#[test]
fn output_over_the_limit_is_cut_and_marked_and_holds_nothing_up() {
    let script = "yes | head -c 5000000; head -c 1001 /dev/zero >&2; exit 3";
    let ended = end_of(shell(&["--max-output", "1000"], script));
    assert_eq!(ended.code, Some(3));
    assert_eq!(ended.text(), "y\n".repeat(500));
    assert_eq!(
        ended.stderr,
        "\0".repeat(1000) + "minivm: output was cut at --max-output\n"
    );
    let exactly = end_of(shell(&["--max-output", "1000"], "yes | head -c 1000"));
    assert_well(&exactly);
    assert_eq!(exactly.stdout.len(), 1000);
    // Where the command itself has seen nothing go wrong, something has.
    let quiet = end_of(shell(&["-q", "--max-output", "1000"], "yes | head -c 1001"));
    assert_eq!(quiet.code, Some(125));
    assert_eq!(quiet.stderr, "minivm: output was cut at --max-output\n");
}

#[test]
fn a_full_disk_is_told_and_an_error() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let mut command = shell(&[], "head -c 1048576 /dev/zero; exit 3");
    let output = command
        .stdout(full())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected =
        "minivm: cannot write the command's output: No space left on device (os error 28)\n";
    assert_eq!((output.status.code(), &*told), (Some(125), expected));
    // The command goes on without its messages, and there is no room for ours.
    for (script, code) in [
        ("echo err >&2; echo out", 125),
        ("echo err >&2; echo out; exit 3", 3),
    ] {
        let mut command = shell(&[], script);
        let output = command
            .stderr(full())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let ended = (output.status.code(), &*output.stdout);
        assert_eq!(ended, (Some(code), &b"out\n"[..]), "{script}");
    }
}

#[test]
fn one_large_write_comes_out_whole_however_late_it_is_read() {
    let script = "dd if=/dev/zero bs=1048576 count=1 2>/dev/null; { dd if=/dev/zero bs=65537 count=1 2>/dev/null; } >&2";
    let file = scratch("messages");
    let mut child = shell(&[], script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&file).unwrap())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let room = rustix::pipe::fcntl_getpipe_size(&stdout).unwrap() as u64;
    let deadline = Instant::now() + PATIENCE;
    while rustix::io::ioctl_fionread(&stdout).unwrap() < room {
        assert!(Instant::now() < deadline, "its output doesn't fill a pipe");
        thread::sleep(Duration::from_millis(5));
    }
    let mut read = Vec::new();
    stdout.read_to_end(&mut read).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(
        (read.len(), fs::read(file).unwrap().len()),
        (1 << 20, 65537)
    );
}

#[test]
fn output_that_nobody_reads_any_more_ends_the_command() {
    let mut child = run(&[], &["yes"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 2]).unwrap();
    drop(stdout);
    let ended = ends_until(&child, Instant::now() + PATIENCE);
    let _ = child.kill();
    assert!(ended, "it goes on");
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn output_that_nobody_takes_does_not_hold_up_the_time_limit() {
    with_limits_from(Duration::from_secs(1), |limit| {
        let limit = format!("{}s", limit.as_secs());
        let mut child = run(&["--timeout", &limit], &["yes"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Where it runs, its output is full from now on.
        let mut stdout = child.stdout.take().unwrap();
        let runs = stdout.read_exact(&mut [0; 2]).is_ok();
        let ended = ends_until(&child, Instant::now() + PATIENCE);
        let _ = child.kill();
        assert!(ended, "it goes on");
        assert_eq!(child.wait().unwrap().code(), Some(124));
        runs.then_some(())
    });
}
