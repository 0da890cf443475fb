//! A monitor of this program's whose machine's observer is an attacker: code that has taken the monitor over, and that runs on the order of
//! a test. minivm's own monitor runs the same code but for that observer, so there is nothing of this in it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use minivm_machine::monitor::{self, Hooks, Observation, Spec};
use minivm_machine::{Error, Events};
use minivm_vmm::{Config, Exit, Kernel, Observer, Outcome};
use serde::{Deserialize, Serialize};

use super::attacks::{self, Target};
use super::host::Host;

/// The program's monitors: their machine's events are an attack's.
const HOOKS: Hooks = Hooks {
    observe,
    log: |_| {},
};

/// Runs before libtest's `main`, of which a monitor would be another test run.
#[allow(unsafe_code, reason = "the section has its own rules")]
// SAFETY: the C library calls the functions in this section, each once, with one thread.
#[unsafe(link_section = ".init_array")]
#[used]
static ANSWER: extern "C" fn() = answer;

extern "C" fn answer() {
    // Not each C library has the arguments by now. A test run's first one is another.
    let words: &[&str] = match &*std::fs::read("/proc/self/cmdline").unwrap() {
        b"minivm\0monitor\0" => &["minivm", monitor::COMMAND],
        _ => &[],
    };
    if monitor::answer(words.iter().map(OsString::from), HOOKS).is_some() {
        std::process::exit(0);
    }
}

/// The thread of a monitor that is taken over.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Thread {
    /// One that runs a vCPU, between two entries into the guest.
    Vcpu,
    /// Another one, while the guest runs.
    Other,
}

/// What is tried, and where.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// An attack's name.
    pub(crate) attack: String,
    pub(crate) thread: Thread,
    pub(crate) target: Target,
}

impl Order {
    /// Tries it, and returns the error that it gets.
    fn obey(&self) -> String {
        let mut all = attacks::ALL.iter();
        let attack = all.find(|attack| attack.name == self.attack).unwrap();
        match (attack.attempt)(&self.target) {
            Ok(()) => "done".into(),
            Err(error) => error.kind().to_string(),
        }
    }
}

/// Takes an order from the stream, which is obeyed at the guest's first exit, and reports there what it led to.
fn observe(stream: UnixStream, _: Instant) -> io::Result<Observation> {
    let order: Order = serde_json::from_reader(&stream)?;
    // A vCPU's thread may write to it, and send nothing.
    let mut stream = File::from(OwnedFd::from(stream));
    let thread = order.thread;
    let act: Act = Box::new(move || writeln!(stream, "{}", order.obey()).unwrap());
    let (seen, is_seen) = channel();
    let act = match thread {
        Thread::Vcpu => act,
        Thread::Other => {
            thread::Builder::new().spawn(move || is_seen.recv().map(|()| act()))?;
            Box::new(move || seen.send(()).unwrap())
        }
    };
    Ok(Observation {
        observer: Arc::new(Attacker(Mutex::new(Some(act)))),
        finish: Box::new(|| {}),
    })
}

type Act = Box<dyn FnOnce() + Send>;

/// The observer, with what happens at the first exit.
struct Attacker(Mutex<Option<Act>>);

impl Observer for Attacker {
    fn on_exit(&self, _: &Exit<'_>) {
        if let Some(act) = self.0.lock().unwrap().take() {
            act();
        }
    }
}

/// Starts a machine of this code, whose monitor obeys the order; returns the error that the attack gets, or how it ends the process.
/// A monitor that goes on has to obey other orders still.
pub(crate) fn take_over(host: Host, code: &[u8], order: &Order) -> String {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    serde_json::to_writer(&mut ours, order).unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    let events = Events {
        stream: theirs,
        began: Instant::now(),
    };
    let config = Config {
        memory: 64 << 20,
        ..Config::new(Kernel::Code(code.to_vec()))
    };
    let (input, _silent) = io::pipe().unwrap();
    let (_output, writer) = io::pipe().unwrap();
    let monitor = Spec::boot(config)
        .events(Some(events))
        .start_console(OwnedFd::from(input), OwnedFd::from(writer))
        .unwrap();
    host.check(&monitor.walls().unwrap());
    monitor.run();
    let mut error = String::new();
    BufReader::new(ours).read_line(&mut error).unwrap();
    if !error.is_empty() {
        monitor.stop();
    }
    match monitor.end() {
        Ok(end) => {
            assert_eq!(end.outcome.unwrap(), Outcome::Stopped);
            error.trim_end().to_owned()
        }
        Err(Error::MonitorDied(how)) => error + &how,
        Err(other) => panic!("{other}"),
    }
}
