//! Every byte that code has written before its end comes out, or its loss is reported.
//!
//! What matters is paired, not multiplied out: how much is written at once, to which stream, by what, where it goes, and whether
//! a report is asked for.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use minivm_sandbox::{Backend, Capability, Sandbox};
use minivm_tests::patience::PATIENCE;
use minivm_tests::program::ends_until;
use serde_json::Value;

use crate::{host, kills};

/// More than a pipe holds, by one.
const LITTLE: usize = (64 << 10) + 1;
const MUCH: usize = 1 << 20;
/// How long a slow reader lets an output lie: longer than a sandbox that has been ended waits for it.
const SLOW: Duration = Duration::from_millis(1500);

/// A program that writes so many bytes to a stream by one call, and fails where that is not all of them.
const PROGRAM: &str = r#"
static long call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}
static char bytes[SIZE];
void _start(void) {
    for (long i = 0; i < SIZE; i++) bytes[i] = 'x';
    call(60, call(1, STREAM, (long)bytes, SIZE) != SIZE, 0, 0);
}
"#;

/// Where an output goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    /// To a pipe that isn't read until the sandbox has ended, or waits for that.
    Pipe,
    File,
    FullDisk,
}

use Stream::{Stderr, Stdout};
use To::{FullDisk, Pipe};
use Writer::{Binary, Python};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    Python,
    Binary,
}

struct Case(usize, Stream, Writer, To, Json);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Json {
    Without,
    With,
}

const CASES: [Case; 8] = [
    Case(LITTLE, Stdout, Python, Pipe, Json::Without),
    Case(MUCH, Stderr, Binary, Pipe, Json::Without),
    Case(MUCH, Stdout, Binary, To::File, Json::Without),
    Case(LITTLE, Stderr, Python, To::File, Json::With),
    Case(MUCH, Stdout, Python, FullDisk, Json::With),
    Case(LITTLE, Stderr, Binary, FullDisk, Json::Without),
    Case(LITTLE, Stdout, Binary, Pipe, Json::With),
    Case(MUCH, Stdout, Python, FullDisk, Json::Without),
];

pub(crate) fn loses_no_output(sandbox: &dyn Sandbox) {
    let able = sandbox.capabilities().contains(&Capability::Commands);
    let folder = tempfile::tempdir().unwrap();
    for (number, case) in CASES.iter().enumerate() {
        // Cold machines are slow to boot here. Those of the tests `run` and `warm_lab` write what else there is.
        let seldom = sandbox.backend() == Backend::Microvm && number > 0;
        if !seldom && (case.2 == Python || able) {
            case.run(sandbox.backend(), folder.path(), number);
        }
    }
}

impl Case {
    fn run(&self, backend: Backend, folder: &Path, number: usize) {
        let Case(size, stream, _, to, json) = *self;
        let about = format!("{backend}, case {number}");
        let mut command = self.command(backend, folder);
        // The object goes to stdout, whatever is in it.
        let sink = if json == Json::With { Stdout } else { stream };
        let file = folder.join(format!("sink-{number}"));
        let mut pipe = None;
        let out: Stdio = match to {
            Pipe => {
                let (reader, writer) = std::io::pipe().unwrap();
                pipe = Some(reader);
                writer.into()
            }
            To::File => File::create(&file).unwrap().into(),
            FullDisk => File::options()
                .write(true)
                .open("/dev/full")
                .unwrap()
                .into(),
        };
        let other = folder.join(format!("other-{number}"));
        let other_out = File::create(&other).unwrap();
        match sink {
            Stdout => command.stdout(out).stderr(other_out),
            Stderr => command.stderr(out).stdout(other_out),
        };
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        // It has our end of the pipe, too.
        drop(command);
        let written = match pipe {
            Some(reader) => read_late(reader, &child, &about),
            None => Vec::new(),
        };
        let code = end_of(&mut child, &about);
        let other = String::from_utf8_lossy(&fs::read(other).unwrap()).into_owned();
        let written = match to {
            Pipe => written,
            To::File => fs::read(file).unwrap(),
            FullDisk => {
                assert_eq!(code, Some(125), "{about}: {other}");
                let told = match json {
                    Json::With => "minivm: cannot write to stdout: ",
                    Json::Without => "minivm: cannot write the command's output: ",
                };
                // A full stderr has no room for words.
                if sink == Stdout {
                    let told = format!("{told}No space left on device (os error 28)\n");
                    assert_eq!(other, told, "{about}");
                }
                return;
            }
        };
        assert_eq!((code, &*other), (Some(0), ""), "{about}");
        let written = match json {
            Json::Without => written,
            Json::With => {
                let report: Value = serde_json::from_slice(&written).unwrap();
                assert_eq!(report["truncated"], false, "{about}");
                let name = if stream == Stdout { "stdout" } else { "stderr" };
                report[name].as_str().unwrap().into()
            }
        };
        let others = written.iter().filter(|&&byte| byte != b'x').count();
        assert_eq!((written.len(), others), (size, 0), "{about}");
    }

    fn command(&self, backend: Backend, folder: &Path) -> Command {
        let Case(size, stream, writer, _, json) = *self;
        let mut command = Command::new(host::minivm());
        let image = format!("dir:{}", minivm_tests::given::python_root().display());
        command.env("MINIVM_IMAGE", image).env("MINIVM_COLD", "1");
        command.args(["run", "-q", "--backend", backend.name()]);
        command.args((json == Json::With).then_some("--json"));
        match writer {
            Binary => {
                let program = compiled(size, stream, folder);
                command.arg("--copy-in");
                command.arg(format!("{}:/write", program.display()));
                command.args(["--", "/write"]);
            }
            Python => {
                let file = match stream {
                    Stdout => "",
                    Stderr => ", file=sys.stderr",
                };
                let code = format!("import sys\nprint('x' * {size}, end=''{file})");
                command.args(["--code", &code]);
            }
        }
        command
    }
}

/// A program that needs nothing of its image.
fn compiled(size: usize, stream: Stream, folder: &Path) -> PathBuf {
    let program = folder.join(format!("write-{size}-{}", stream as u8));
    let source = folder.join("write.c");
    fs::write(&source, PROGRAM).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args([
        "-static",
        "-nostdlib",
        "-O1",
        "-fno-stack-protector",
        "-fno-builtin",
    ]);
    compiler.arg(format!("-DSIZE={size}"));
    compiler.arg(format!("-DSTREAM={}", stream as u8 + 1));
    let compiled = compiler.arg("-o").arg(&program).arg(&source).status();
    assert!(compiled.unwrap().success());
    program
}

/// Reads what is in the pipe when the sandbox has been seen to end, or to be unable to, and some time after that.
fn read_late(mut from: std::io::PipeReader, child: &Child, about: &str) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    let room = rustix::pipe::fcntl_getpipe_size(&from).unwrap() as u64;
    loop {
        let held = rustix::io::ioctl_fionread(&from).unwrap();
        let over = held > 0 && kills::descendants(child.id()).is_empty();
        if over || held == room || ends_until(child, Instant::now()) {
            break;
        }
        assert!(Instant::now() < deadline, "{about}: {held} bytes have come");
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(SLOW);
    let mut read = Vec::new();
    from.read_to_end(&mut read).unwrap();
    read
}

fn end_of(child: &mut Child, about: &str) -> Option<i32> {
    let ended = ends_until(child, Instant::now() + PATIENCE);
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait().unwrap();
    assert!(ended, "{about}: it goes on");
    status.code()
}
