//! Probes that try what code in a sandbox can reach of the host.
//!
//! A probe runs code that tries to get out, and judges by events on the host: whether a secret was printed, a connection was made,
//! or a process was seen. It doesn't trust what the code reports.

use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use minivm_image::io_error::cannot;
use serde::Serialize;

use super::{Backend, End, Error, Finished, Sandbox, Task};
use minivm_machine::output::CaptureBuffer;
use minivm_machine::printable::printable;
use minivm_machine::session::Event;

/// The time limit of a probe's code.
const LIMIT: Duration = Duration::from_secs(60);
/// The interval between two looks at processes and output.
const TICK: Duration = Duration::from_millis(20);

/// An attempt to reach the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// Reading a file of the host.
    File,
    /// Reading a variable of this process's environment.
    Environment,
    /// Connecting to a port of the host's loopback interface.
    Network,
    /// Starting a process.
    Process,
    /// Reading a file of another sandbox of the same backend, which still runs.
    Neighbour,
}

impl Probe {
    /// All probes.
    pub const ALL: [Probe; 5] = [
        Probe::File,
        Probe::Environment,
        Probe::Network,
        Probe::Process,
        Probe::Neighbour,
    ];

    /// Returns the name of the probe's target.
    pub fn name(self) -> &'static str {
        match self {
            Probe::File => "host file",
            Probe::Environment => "host variable",
            Probe::Network => "host port",
            Probe::Process => "process",
            Probe::Neighbour => "neighbour's file",
        }
    }
}

/// The result of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "reached", content = "how")]
pub enum Reach {
    /// The code reached nothing. The text names the exceptions or exit codes that it got.
    Nothing(String),
    /// The code reached a file, process or address of its own sandbox only.
    Own,
    /// The code reached the host, or another sandbox.
    Host,
}

/// A secret variable of this process's environment.
#[derive(Clone, Copy, Debug)]
pub struct Secret<'a> {
    /// The variable's name.
    pub name: &'a str,
    /// The variable's value.
    pub value: &'a str,
}

/// Runs a probe in a sandbox.
///
/// # Errors
///
/// The error of [`Sandbox::run`], or [`Error::Host`] where the probe's file or port can't be made.
pub fn reach(sandbox: &dyn Sandbox, probe: Probe, secret: Secret<'_>) -> Result<Reach, Error> {
    match probe {
        Probe::File => file(sandbox),
        Probe::Environment => environment(sandbox, secret),
        Probe::Network => network(sandbox),
        Probe::Process => process(sandbox),
        Probe::Neighbour => neighbour(sandbox),
    }
}

fn file(sandbox: &dyn Sandbox) -> Result<Reach, Error> {
    let secret = word();
    let mut file = tempfile::NamedTempFile::new().map_err(cannot("create a file"))?;
    file.write_all(secret.as_bytes())
        .map_err(cannot("write a file"))?;
    let path = file.path().to_string_lossy();
    let mut tries = vec![format!("print(open({path:?}).read())")];
    match sandbox.backend() {
        Backend::Deno => tries.push(format!(
            "from js import Deno\nprint(Deno.readTextFileSync({path:?}))"
        )),
        Backend::Chromium => tries.push(request(&format!("file://{path}"))),
        _ => {}
    }
    furthest(sandbox, tries, |printed| printed.contains(&secret))
}

fn environment(sandbox: &dyn Sandbox, secret: Secret<'_>) -> Result<Reach, Error> {
    let name = secret.name;
    let mut tries = vec![
        format!("import os\nprint(os.environ[{name:?}])"),
        "print(open('/proc/self/environ').read())".to_owned(),
        "print(open('/proc/1/environ').read())".to_owned(),
    ];
    if sandbox.backend() == Backend::Deno {
        tries.push(format!(
            "from js import Deno\nprint(Deno.env.get({name:?}))"
        ));
    }
    furthest(sandbox, tries, |printed| printed.contains(secret.value))
}

fn network(sandbox: &dyn Sandbox) -> Result<Reach, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(cannot("listen on a port"))?;
    let address = listener.local_addr().map_err(cannot("listen on a port"))?;
    listener
        .set_nonblocking(true)
        .map_err(cannot("listen on a port"))?;
    let port = address.port();
    let mut tries = vec![format!(
        "import socket\ns = socket.create_connection(('127.0.0.1', {port}), 3)\ns.send(b'x')\nprint(s.recv(1))"
    )];
    match sandbox.backend() {
        Backend::Deno => tries.push(format!(
            "from js import fetch\nfrom pyodide.ffi import run_sync\nprint(run_sync(fetch('http://127.0.0.1:{port}/')))"
        )),
        Backend::Chromium => tries.push(request(&format!("http://127.0.0.1:{port}/"))),
        _ => {}
    }
    let tried = furthest(sandbox, tries, |_| false)?;
    match listener.accept() {
        Ok(_) => Ok(Reach::Host),
        Err(_) => Ok(tried),
    }
}

fn process(sandbox: &dyn Sandbox) -> Result<Reach, Error> {
    let mark = word();
    // In two halves, since the code itself may be an argument of a process on the host.
    let (start, end) = mark.split_at(mark.len() / 2);
    let script = format!("'echo started; sleep 1 # {start}' '{end}'");
    let mut tries = vec![format!(
        "import subprocess\nsubprocess.run(['/bin/sh', '-c', {script}], check=True)"
    )];
    if sandbox.backend() == Backend::Deno {
        tries.push(format!(
            "from js import Deno, Object\nfrom pyodide.ffi import to_js\n\
             o = to_js({{'args': ['-c', {script}]}}, dict_converter=Object.fromEntries)\n\
             Deno.Command.new('/bin/sh', o).outputSync()"
        ));
    }
    let over = Arc::new(AtomicBool::new(false));
    let watching = thread::spawn({
        let over = over.clone();
        move || {
            let mut seen = false;
            while !over.load(Ordering::SeqCst) {
                seen |= has_process(&mark);
                thread::sleep(TICK);
            }
            seen
        }
    });
    let tried = furthest(sandbox, tries, |_| false);
    over.store(true, Ordering::SeqCst);
    match (watching.join().unwrap_or(false), tried?) {
        (true, _) => Ok(Reach::Host),
        (false, tried) => Ok(tried),
    }
}

/// Returns whether a process on the host has this in its command line.
fn has_process(mark: &str) -> bool {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .any(|line| line.contains(mark))
}

fn neighbour(sandbox: &dyn Sandbox) -> Result<Reach, Error> {
    const PATH: &str = "/tmp/minivm-reach";
    let secret = word();
    let printed = CaptureBuffer::default();
    let (stop, events) = mpsc::channel();
    let mut task = Task::code(format!(
        "import time\nf = open({PATH:?}, 'w')\nf.write({secret:?})\nf.close()\nprint('written', flush=True)\ntime.sleep(60)"
    ));
    task.limits.time = Some(LIMIT);
    task.stdout = Box::new(printed.clone());
    task.events = events;
    thread::scope(|scope| {
        let first = scope.spawn(|| sandbox.run(task));
        while !printed.text().contains("written") && !first.is_finished() {
            thread::sleep(TICK);
        }
        let tries = vec![
            // It removes the file, which would otherwise stay on a host without any sandbox.
            format!("import os\nprint(open({PATH:?}).read())\nos.remove({PATH:?})"),
            "import os\nfor d in ('/tmp', '/var/tmp', '/dev/shm'):\n  if os.path.isdir(d):\n    for f in os.listdir(d):\n      \
             print(open(os.path.join(d, f)).read())\nraise FileNotFoundError('nothing of a neighbour')"
                .to_owned(),
        ];
        let tried = furthest(sandbox, tries, |printed| printed.contains(&secret));
        // The task may have ended by itself, where the sandbox has no files.
        let _ = stop.send(Event::Stop(9));
        let first = first.join().unwrap_or_else(|_| {
            Err(Error::Failed {
                backend: sandbox.backend(),
                detail: "a thread panicked".into(),
            })
        });
        let wrote = printed.text().contains("written");
        match (wrote, first?) {
            (false, finished) => Ok(Reach::Nothing(refusal(&finished))),
            (true, _) => tried,
        }
    })
}

/// Returns code for a page's synchronous request.
fn request(url: &str) -> String {
    format!(
        "from js import XMLHttpRequest\nx = XMLHttpRequest.new()\nx.open('GET', {url:?}, False)\nx.send()\nprint(x.responseText)"
    )
}

/// Runs each attempt, and returns the furthest result.
fn furthest(
    sandbox: &dyn Sandbox,
    tries: Vec<String>,
    is_hosts: impl Fn(&str) -> bool,
) -> Result<Reach, Error> {
    let mut refusals: Vec<String> = Vec::new();
    let mut own = false;
    for code in tries {
        let printed = CaptureBuffer::default();
        let mut task = Task::code(code);
        task.limits.time = Some(LIMIT);
        task.stdout = Box::new(printed.clone());
        task.stderr = Box::new(printed.clone());
        let finished = sandbox.run(task)?;
        if is_hosts(&printed.text()) {
            return Ok(Reach::Host);
        }
        own |= finished.end == End::Exited(0);
        let refusal = refusal(&finished);
        if !refusals.contains(&refusal) {
            refusals.push(refusal);
        }
    }
    match own {
        true => Ok(Reach::Own),
        false => Ok(Reach::Nothing(refusals.join(", "))),
    }
}

/// Names the exception or the end by which code was refused.
fn refusal(finished: &Finished) -> String {
    match (&finished.exception, &finished.end) {
        // JavaScript's own error is in the message: `NotCapable: Requires read access …`.
        (Some(exception), _) if exception.kind == "JsException" => {
            let name = exception.message.split(':').next().unwrap_or_default();
            printable(name, 40)
        }
        (Some(exception), _) => printable(&exception.kind, 40),
        (None, End::Exited(code)) => format!("exit code {code}"),
        (None, end) => format!("{end:?}"),
    }
}

/// Returns a random word of 128 bits.
pub fn word() -> String {
    let mut bytes = [0; 16];
    // It can't fail or return short: the buffer is small, and the kernel's random numbers are initialized.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    debug_assert_eq!(filled, Ok(bytes.len()));
    let hex = bytes.iter().map(|byte| format!("{byte:02x}"));
    format!("minivm-{}", hex.collect::<String>())
}
