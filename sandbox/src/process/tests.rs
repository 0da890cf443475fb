//! Shell scripts in jails.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use minivm_tests::output::Shared;
use minivm_tests::patience::{PATIENCE, wait_until, with_limits_from};
use minivm_tests::{processes, stress};

use super::*;
use minivm_machine::jail::Jail;

/// The result of a shell script.
struct Ran {
    finished: Finished,
    stdout: String,
    stderr: String,
}

fn jail(script: &str) -> Jailed {
    let jail = Jail::new().unwrap().bind_system();
    let jail = jail.env("PATH", "/usr/bin:/bin");
    jail.program("/bin/sh", ["-c", script]).unwrap()
}

fn run_with(script: &str, limits: &Limits, events: Receiver<Event>) -> Ran {
    let (stdout, stderr) = (Shared::default(), Shared::default());
    let streams = Streams {
        stdin: None,
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(stderr.clone()),
        events,
    };
    let finished = run(jail(script), streams, limits).unwrap();
    Ran {
        finished,
        stdout: stdout.text(),
        stderr: stderr.text(),
    }
}

fn run_script(script: &str, limits: &Limits) -> Ran {
    run_with(script, limits, mpsc::channel().1)
}

fn limits() -> Limits {
    Limits {
        time: Some(PATIENCE),
        ..Limits::default()
    }
}

/// Bubblewrap is the first process of its namespace and makes the second. It looks its child up in `/proc` by ID 2, which on a whole
/// machine is the ID of another process, and in a container perhaps of none.
#[test]
fn jails_can_be_made_where_no_process_has_their_numbers() {
    let mut container = Command::new("unshare");
    container.args(["--pid", "--mount-proc", "--fork", "--kill-child"]);
    if !rustix::process::geteuid().is_root() {
        container.args(["--user", "--map-root-user"]);
    }
    // The second process of this namespace ends at once, so that ID 2 is free.
    let script = "/bin/true; \"$0\" --exact \"$1\"; exit $?";
    let test = "process::tests::outputs_stay_apart_and_the_exit_code_is_the_programs";
    let output = container
        .args(["sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("1 passed"), "{printed}");
}

#[test]
fn outputs_stay_apart_and_the_exit_code_is_the_programs() {
    let ran = run_script("echo out; echo err >&2; exit 42", &limits());
    assert_eq!((&*ran.stdout, &*ran.stderr), ("out\n", "err\n"));
    assert_eq!(ran.finished.end, End::Exited(42));
    let ran = run_script("kill -SEGV $$", &limits());
    assert_eq!(ran.finished.end, End::Signal(11));
}

#[test]
fn nothing_of_the_host_is_seen_inside() {
    let script =
        "ls /root /home /etc/passwd /work 2>&1; env; set -- /proc/[0-9]*; echo $#; ls /tmp";
    let ran = run_script(script, &limits());
    assert!(!ran.stdout.contains("HOME="), "{}", ran.stdout);
    let missing = ran.stdout.matches("No such file").count();
    assert_eq!(missing, 4, "{}", ran.stdout);
    // The jail's first process and the shell, which counts by itself: of a pipe's two programs, one may not be there yet.
    assert!(ran.stdout.lines().any(|line| line == "2"), "{}", ran.stdout);
}

#[test]
fn the_time_limit_ends_all_processes() {
    with_limits_from(Duration::from_millis(300), |limit| {
        let mut limits = limits();
        limits.time = Some(limit);
        let ran = run_script("sleep 4331 & echo begun; sleep 4332", &limits);
        assert_eq!(ran.finished.end, End::TimedOut);
        (ran.stdout == "begun\n").then_some(())
    });
    // They are killed with their namespace, for which the run doesn't wait.
    wait_until("they go on", || {
        processes::with_argument("sleep\u{0}433") == 0
    });
}

#[test]
fn the_memory_limit_ends_it_and_memory_is_measured() {
    let mut limits = limits();
    limits.memory = Some(64 << 20);
    let hog = "exec tail /dev/zero";
    assert_eq!(run_script(hog, &limits).finished.end, End::OutOfMemory);
    let ran = run_script("sleep 0.2", &limits);
    let peak = ran.finished.usage.peak_memory.unwrap();
    assert!((1 << 10..32 << 20).contains(&peak), "{peak}");
}

#[test]
fn a_flood_is_cut() {
    let mut limits = limits();
    limits.output = Some(1000);
    let ran = run_script("head -c 5000000 /dev/zero", &limits);
    assert_eq!(ran.stdout.len(), 1000);
    assert!(ran.finished.truncated && ran.finished.end == End::Exited(0));
}

#[test]
fn a_signal_from_outside_ends_it() {
    let (sender, events) = mpsc::channel();
    sender.send(Event::Signal(15)).unwrap();
    let ran = run_with("sleep 4323", &limits(), events);
    assert_eq!(ran.finished.end, End::Stopped(15));
}

/// The jail's first processes have just been forked then, and are not yet bound to each other's lives.
#[test]
fn a_run_that_is_stopped_as_it_starts_leaves_nothing() {
    for _ in 0..stress::count(20, 1000) {
        let (sender, events) = mpsc::channel();
        sender.send(Event::Signal(15)).unwrap();
        let ran = run_with("sleep 4341", &limits(), events);
        assert_eq!(ran.finished.end, End::Stopped(15));
    }
    wait_until("they go on", || {
        processes::with_argument("sleep\u{0}4341") == 0
    });
}

#[test]
fn a_missing_program_is_an_error_of_the_jail() {
    let jail = Jail::new().unwrap().bind_system();
    let jailed = jail.program("/nowhere", ["x"]).unwrap();
    let streams = Streams::to(io::sink(), io::sink());
    let error = run(jailed, streams, &limits()).unwrap_err().to_string();
    assert!(error.contains("/nowhere"), "{error}");
}

#[test]
fn an_added_file_is_read_only() {
    let jail = Jail::new().unwrap().bind_system();
    let jail = jail.add_file(b"secret", "/data/file").unwrap();
    let script = "cat /data/file; echo x > /data/file";
    let jailed = jail.program("/bin/sh", ["-c", script]).unwrap();
    let stdout = Shared::default();
    let streams = Streams::to(stdout.clone(), io::sink());
    let finished = run(jailed, streams, &limits()).unwrap();
    assert_eq!(*stdout.0.lock().unwrap(), b"secret");
    assert_ne!(finished.end, End::Exited(0));
}

/// An output whose first write waits for a function to return.
struct Slow<F>(Option<F>, Shared);

impl<F: FnOnce() + Send> Write for Slow<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(wait) = self.0.take() {
            wait();
        }
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn run_to(
    script: &str,
    limits: &Limits,
    stdout: impl Write + Send + 'static,
    stderr: impl Write + Send + 'static,
) -> Result<Finished, Error> {
    let streams = Streams::to(stdout, stderr);
    run(jail(script), streams, limits)
}

#[test]
fn a_reader_may_take_its_time_when_the_program_has_ended() {
    let taken = Shared::default();
    let slow = Slow(Some(|| thread::sleep(GRACE * 3 / 2)), taken.clone());
    let script = "head -c 100000 /dev/zero";
    let finished = run_to(script, &limits(), slow, io::sink()).unwrap();
    assert_eq!(finished.end, End::Exited(0));
    assert!(!finished.truncated && finished.warnings.is_empty());
    assert_eq!(taken.0.lock().unwrap().len(), 100_000);
}

#[test]
fn a_reader_that_takes_nothing_gets_a_warning_at_the_time_limit() {
    for script in ["echo begun; sleep 4324", "echo done", "yes"] {
        with_limits_from(Duration::from_millis(300), |limit| {
            let (over, wait) = mpsc::channel::<()>();
            let stuck = move || wait.recv().unwrap_or_default();
            let mut limits = limits();
            limits.time = Some(limit);
            let stdout = Slow(Some(stuck), Shared::default());
            let finished = run_to(script, &limits, stdout, io::sink()).unwrap();
            drop(over);
            assert_eq!(finished.end, End::TimedOut, "{script}");
            // The script may have been killed before it began.
            finished.truncated.then(|| {
                assert_eq!(finished.warnings, [Warning::NotTaken]);
            })
        });
    }
}

#[test]
fn a_full_disk_is_an_error_for_stdout_and_a_warning_for_stderr() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for script in ["echo out", "yes"] {
        let error = run_to(script, &limits(), full(), io::sink()).unwrap_err();
        assert_eq!(error.to_string(), "cannot write the command's output");
        let Error::Host(HostError { source, .. }) = error else {
            panic!("{error:?}")
        };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    }
    let script = "echo err >&2; echo err >&2; echo out; exit 3";
    let out = Shared::default();
    let finished = run_to(script, &limits(), out.clone(), full()).unwrap();
    assert_eq!(finished.end, End::Exited(3));
    assert_eq!(*out.0.lock().unwrap(), b"out\n");
    assert!(finished.truncated && finished.warnings[0].is_loss());
}

#[test]
fn an_output_closed_at_any_time_is_output_closed() {
    // Shut down, and not only dropped: a process that another test is starting may hold a copy.
    let (reader, writer) = UnixStream::pair().unwrap();
    let close = move || reader.shutdown(Shutdown::Both).unwrap();
    let closed = Slow(Some(close), Shared::default());
    // The first write lets the reader go; the second finds it gone.
    struct Both<A, B>(A, B);
    impl<A: Write, B: Write> Write for Both<A, B> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write_all(bytes)?;
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let finished = run_to("echo out", &limits(), Both(closed, writer), io::sink()).unwrap();
    assert_eq!(finished.end, End::OutputClosed);
}
