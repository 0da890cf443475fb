//! The keeper: a background process that runs a lab and gives its machines to commands.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use minivm_image::io_error::failed;
use minivm_image::publish::Lock;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::{AgentReport, FAILED, IDLE, PORTS, REPORT_MAX, listen, note, socket};
use crate::Error::NoTemplate;
use crate::lab::frame::{self, Kind};
use crate::lab::{self, LabRequest, Stop};
use crate::lab_machine::LabMachine;
use crate::output::CaptureBuffer;
use crate::printable::printable;
use crate::templates::{Error, Recipe};

/// How long a lab may take until its template is made: less than any command waits for it, and long enough for an interpreter that
/// imports much.
const START_LIMIT: Duration = Duration::from_secs(140);
/// How often the thread that ends an unused lab checks it.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The most characters of the reason why the template can't be made.
const MESSAGE_MAX: usize = 500;
/// How long a command waits for a machine where all are in use: a fraction of a boot.
const PORT_WAIT: Duration = Duration::from_millis(200);
/// How long a machine may take to end when its command has hung up.
const END_WAIT: Duration = Duration::from_secs(10);

/// Keeps a lab for the template until no command has used it for a while, or a signal asks for its end. Returns at once where another
/// keeper does so.
///
/// # Errors
///
/// [`Error::File`] where the socket, its lock or its note can't be made; [`Error::Machine`] where the lab isn't ready in time.
pub fn run(recipe: &Recipe, cache: &Path) -> Result<(), Error> {
    let key = recipe.key()?;
    let path = socket(cache, &key);
    let Some(_alone) = Lock::try_alone(&path.with_extension("lock"))? else {
        return Ok(());
    };
    // A keeper that was killed has left its socket.
    let _ = fs::remove_file(&path);
    let listener = listen(&path).map_err(failed("listen at", &path))?;
    let _noted = write_note(&path, recipe)?;
    let _removed = RemoveOnDrop(path);
    let keeper = Arc::new(Keeper::new(IDLE));
    listen_to_signals(keeper.clone())?;
    let accepting = keeper.clone();
    thread::spawn(move || accepting.accept(&listener));
    let watching = keeper.clone();
    thread::spawn(move || watching.watch());
    let ended = run_lab(recipe, &keeper);
    if keeper.state().start_timed_out {
        // The commands that wait lose their connections with this process, and may start another keeper.
        let why = format!("its lab was not ready within {START_LIMIT:?}");
        return Err(NoTemplate(why).into());
    }
    let failed = keeper.change(|state| match (&state.stage, ended) {
        (Stage::Starting, Err(why)) => {
            // Commands that connect from now on get the reason at once.
            state.stage = Stage::Failed(why);
            true
        }
        // A template that was ready before can be made again.
        _ => {
            state.stage = Stage::ShuttingDown;
            false
        }
    });
    if failed {
        keeper.keep_refusing(FAILED);
    }
    Ok(())
}

/// Drains the keeper at the first signal that asks for an end. A second one ends this process, and the sessions with it.
fn listen_to_signals(keeper: Arc<Keeper>) -> Result<(), Error> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])
        .map_err(failed("listen to", Path::new("signals")))?;
    thread::spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            keeper.drain();
        }
        if let Some(signal) = signals.next() {
            let _ = emulate_default_handler(signal);
        }
    });
    Ok(())
}

/// Makes the request for a lab that has the template's machine; returns it with this process's ends of the lab's ports.
fn request(recipe: &Recipe) -> Result<(LabRequest, VecDeque<UnixStream>), Error> {
    let mut recipe = recipe.clone();
    recipe.machine.console = false;
    // The template itself, and one machine for each port.
    let machines = recipe.machine.memory * (1 + PORTS as u64);
    if available_memory().is_some_and(|available| machines > available / 2) {
        return Err(NoTemplate("this host has too little memory to keep a lab".into()).into());
    }
    let mut request = LabMachine::Template(recipe).request(0)?;
    request.make_room(machines).map_err(crate::Error::from)?;
    request.stdin = lab::Input::Null;
    let mut ports = VecDeque::new();
    for _ in 0..PORTS {
        let (ours, theirs) = UnixStream::pair().map_err(failed("create", Path::new("a socket")))?;
        request.ports.push(OwnedFd::from(theirs));
        ports.push_back(ours);
    }
    Ok((request, ports))
}

/// Runs the lab to its end.
///
/// # Errors
///
/// The reason why there is no template, or why the lab ended.
fn run_lab(recipe: &Recipe, keeper: &Arc<Keeper>) -> Result<(), String> {
    let (mut request, ports) = request(recipe).map_err(|error| error.to_string())?;
    keeper.change(|state| state.free = ports);
    let messages = CaptureBuffer::default();
    request.stop = keeper.stop.clone();
    request.stdout = lab::Output::To(Box::new(Reports {
        keeper: keeper.clone(),
        line: Vec::new(),
    }));
    request.stderr = lab::Output::To(Box::new(messages.clone()));
    let ended = request.run();
    match (ended, keeper.state().failed.take()) {
        (Ok(_), Some(why)) => Err(printable(&why, MESSAGE_MAX)),
        (Ok(finished), None) if finished.code == 0 => Ok(()),
        (Ok(_), None) => Err(printable(messages.text().trim(), MESSAGE_MAX)),
        (Err(lab::Error::Stopped), _) => Ok(()),
        (Err(error), _) => Err(error.to_string()),
    }
}

/// The state that the keeper's threads share.
struct Keeper {
    state: Mutex<State>,
    changed: Condvar,
    stop: Stop,
    /// How long the lab is kept when no command uses it.
    idle: Duration,
}

struct State {
    stage: Stage,
    /// The free ports. The first has been free for the longest, and so has had time to make a machine.
    free: VecDeque<UnixStream>,
    sessions: usize,
    /// When a command last used it.
    used: Instant,
    /// Whether the lab was stopped because it wasn't ready in time.
    start_timed_out: bool,
    /// Why the agent could not make the template.
    failed: Option<String>,
}

#[derive(Debug, PartialEq)]
enum Stage {
    Starting,
    Ready,
    /// The template can't be made, for this reason.
    Failed(String),
    /// The lab is being stopped, or has been. No session begins any more; another keeper may start a lab.
    ShuttingDown,
}

/// Why a command gets no machine.
#[derive(Debug, PartialEq)]
enum NoMachine {
    /// For this reason.
    Because(String),
    /// The lab is being stopped. The command's connection is closed, and it may boot a machine or start another lab.
    ShuttingDown,
}

/// A writer for the agent's stdout, which has an [`AgentReport`] a line.
struct Reports {
    keeper: Arc<Keeper>,
    /// The bytes of the current line.
    line: Vec<u8>,
}

impl Write for Reports {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            match byte {
                b'\n' => {
                    if let Ok(report) = serde_json::from_slice(&self.line) {
                        self.keeper.change(|state| state.take_report(report));
                    }
                    self.line.clear();
                }
                byte if self.line.len() < REPORT_MAX => self.line.push(byte),
                _ => {}
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    fn is_idle(&self, limit: Duration) -> bool {
        self.stage == Stage::Ready && self.used.elapsed() > limit
    }

    fn take_report(&mut self, report: AgentReport) {
        match report {
            AgentReport::Ready => self.set_ready(),
            AgentReport::Failed(why) => self.failed = Some(why),
        }
    }

    /// Notes that the template is made, unless the lab is being stopped already.
    fn set_ready(&mut self) {
        if self.stage == Stage::Starting {
            self.stage = Stage::Ready;
            self.used = Instant::now();
        }
    }
}

impl Keeper {
    fn new(idle: Duration) -> Keeper {
        Keeper {
            state: Mutex::new(State {
                stage: Stage::Starting,
                free: VecDeque::new(),
                sessions: 0,
                used: Instant::now(),
                start_timed_out: false,
                failed: None,
            }),
            changed: Condvar::new(),
            stop: Stop::default(),
            idle,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state());
        self.changed.notify_all();
        changed
    }

    fn accept(self: Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming().flatten() {
            let keeper = self.clone();
            // Where no thread can be made, the connection is closed.
            let _ = thread::Builder::new().spawn(move || keeper.serve(&stream));
        }
    }

    /// Stops the lab when no command has used it for a while, or where it isn't ready in time.
    fn watch(&self) {
        let began = Instant::now();
        loop {
            thread::sleep(CHECK_INTERVAL);
            self.end_if(|state| {
                state.start_timed_out =
                    state.stage == Stage::Starting && began.elapsed() > START_LIMIT;
                state.start_timed_out || state.is_idle(self.idle)
            });
        }
    }

    /// Stops the lab if `wanted` says so and no command uses it; returns whether it is being stopped. Both happen under one lock: a
    /// command has its machine before, or gets none.
    fn end_if(&self, wanted: impl FnOnce(&mut State) -> bool) -> bool {
        let ending = self.change(|state| {
            let ending = state.sessions == 0 && wanted(state);
            if ending {
                state.stage = Stage::ShuttingDown;
            }
            ending
        });
        if ending {
            self.stop.stop();
        }
        ending
    }

    /// Holds a connection open until this process exits. Never returns.
    fn stay_connected() -> ! {
        loop {
            thread::park();
        }
    }

    /// Lets commands get the reason of the failure for `limit`, or until the keeper is to end.
    fn keep_refusing(&self, limit: Duration) {
        let refusing = |state: &mut State| state.stage != Stage::ShuttingDown;
        drop(
            self.changed
                .wait_timeout_while(self.state(), limit, refusing),
        );
    }

    /// Serves one connection: runs a session, sends the reason why there is none, or stops the lab. Closes it after any other frame.
    fn serve(&self, client: &UnixStream) {
        match frame::receive(client, &mut Vec::new()) {
            Ok(Some(Kind::Attach)) => {}
            Ok(Some(Kind::Shutdown)) if self.end_if(|_| true) => Keeper::stay_connected(),
            _ => return,
        }
        let port = match self.take_port() {
            Ok(port) => port,
            Err(NoMachine::Because(why)) => {
                let _ = frame::send(Kind::Failed, why.as_bytes(), client);
                return;
            }
            Err(NoMachine::ShuttingDown) => return,
        };
        let clean = self.session(client, &port);
        self.end_session(clean.then_some(port));
    }

    /// Counts a session as ended, and takes its port back, if it can be used again. Stops the lab after the last session of a keeper that
    /// drains.
    fn end_session(&self, port: Option<UnixStream>) {
        self.change_and_end(|state| {
            state.sessions -= 1;
            state.used = Instant::now();
            state.free.extend(port);
        });
    }

    /// Lets no further session begin, and stops the lab when the last one has ended.
    fn drain(&self) {
        self.change_and_end(|state| state.stage = Stage::ShuttingDown);
    }

    /// Changes the state, and stops the lab where that leaves a keeper that drains without a session.
    fn change_and_end(&self, change: impl FnOnce(&mut State)) {
        let drained = self.change(|state| {
            change(state);
            state.sessions == 0 && state.stage == Stage::ShuttingDown
        });
        if drained {
            self.stop.stop();
        }
    }

    /// Takes a free port, once the lab is ready. Its machine then belongs to one session.
    fn take_port(&self) -> Result<UnixStream, NoMachine> {
        let starting = |state: &mut State| state.stage == Stage::Starting;
        let state = self.changed.wait_while(self.state(), starting);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        // Many runs are short, and one that has just ended returns its port a moment later.
        let none = |state: &mut State| state.stage == Stage::Ready && state.free.is_empty();
        let waited = self.changed.wait_timeout_while(state, PORT_WAIT, none);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match &state.stage {
            Stage::Starting | Stage::Ready => {}
            Stage::Failed(why) => return Err(NoMachine::Because(why.clone())),
            Stage::ShuttingDown => return Err(NoMachine::ShuttingDown),
        }
        let Some(port) = state.free.pop_front() else {
            let why = "all its machines are in use";
            return Err(NoMachine::Because(why.to_owned()));
        };
        state.sessions += 1;
        Ok(port)
    }

    /// Passes frames on between a command and its machine. Returns whether the port can be used again.
    fn session(&self, client: &UnixStream, port: &UnixStream) -> bool {
        let unjailed = lab::unjailed().unwrap_or_default();
        if frame::send(Kind::Started, unjailed.as_bytes(), client).is_err() {
            // The command has hung up before the session began.
            return true;
        }
        thread::scope(|scope| {
            let (over, ended) = mpsc::channel();
            let input = scope.spawn(move || self.pass_in(client, port, &ended));
            let ended = pass_out(port, client);
            let _ = over.send(());
            // Ends the other thread's wait for the command's input.
            let _ = client.shutdown(Shutdown::Both);
            let hung_up = input.join().unwrap_or(false);
            ended && hung_up
        })
    }

    /// Passes the command's frames to the machine until the command hangs up. Returns whether all were sent.
    fn pass_in(&self, client: &UnixStream, port: &UnixStream, ended: &Receiver<()>) -> bool {
        let mut from = BufReader::with_capacity(2 * frame::MAX_PAYLOAD, client);
        let mut payload = Vec::new();
        while let Ok(Some(kind @ (Kind::Stdin | Kind::Folders | Kind::Ping))) =
            frame::receive(&mut from, &mut payload)
        {
            if frame::send(kind, &payload, port).is_err() {
                return false;
            }
        }
        let sent = frame::send(Kind::Hangup, &[], port).is_ok();
        if ended.recv_timeout(END_WAIT) == Err(RecvTimeoutError::Timeout) {
            // The port is not used again.
            let _ = port.shutdown(Shutdown::Both);
        }
        sent
    }
}

/// Passes the machine's frames to the command until the machine has ended. Returns `false` where the lab ended first.
fn pass_out(port: &UnixStream, client: &UnixStream) -> bool {
    let mut payload = Vec::new();
    let mut connected = true;
    loop {
        let Ok(Some(kind)) = frame::receive(port, &mut payload) else {
            return false;
        };
        // A command that has hung up gets no more frames; those of its machine are still read, up to the last.
        connected = connected && frame::send(kind, &payload, client).is_ok();
        if kind == Kind::Exit {
            return true;
        }
    }
}

/// Returns how many bytes programs can get before the kernel has to swap (proc(5), "/proc/meminfo").
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// Writes the note that [`kept`](super::kept) reads; returns a guard that removes it.
fn write_note(socket: &Path, recipe: &Recipe) -> Result<RemoveOnDrop, Error> {
    let path = note(socket);
    let text = serde_json::to_vec(recipe).expect("plain data can be written");
    fs::write(&path, text).map_err(failed("write", &path))?;
    Ok(RemoveOnDrop(path))
}

/// A file that is removed when this is dropped.
struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a keeper that is ready, and returns it with the lab's end of its one port.
    fn ready() -> (Keeper, UnixStream) {
        let keeper = Keeper::new(Duration::ZERO);
        let (ours, theirs) = UnixStream::pair().unwrap();
        keeper.change(|state| {
            state.free.push_back(ours);
            state.set_ready();
        });
        (keeper, theirs)
    }

    #[test]
    fn a_keeper_that_drains_lets_its_session_end_and_no_other_begin() {
        let (keeper, _machine) = ready();
        let port = keeper.take_port().unwrap();
        keeper.drain();
        assert_eq!(keeper.take_port().unwrap_err(), NoMachine::ShuttingDown);
        assert!(!keeper.stop.was_called());
        keeper.end_session(Some(port));
        assert!(keeper.stop.was_called());
        let (unused, _machine) = ready();
        unused.drain();
        assert!(unused.stop.was_called());
    }

    #[test]
    fn a_lab_that_is_being_stopped_hands_out_no_machine() {
        let (keeper, _machine) = ready();
        assert!(keeper.end_if(|_| true));
        assert_eq!(keeper.take_port().unwrap_err(), NoMachine::ShuttingDown);
        // Nor does a lab that is ready only then.
        let keeper = Keeper::new(Duration::ZERO);
        assert!(keeper.end_if(|_| true));
        keeper.change(State::set_ready);
        assert_eq!(keeper.take_port().unwrap_err(), NoMachine::ShuttingDown);
    }

    #[test]
    fn a_lab_in_use_is_not_stopped() {
        let (keeper, _machine) = ready();
        let _port = keeper.take_port().unwrap();
        assert!(!keeper.end_if(|_| true));
        assert_eq!(keeper.state().stage, Stage::Ready);
    }

    #[test]
    fn a_lab_is_stopped_or_used_and_never_both() {
        for _ in 0..1000 {
            let (keeper, _machine) = ready();
            let (taken, ended) = thread::scope(|scope| {
                let taking = scope.spawn(|| keeper.take_port().is_ok());
                let idle = |state: &mut State| state.is_idle(Duration::ZERO);
                let ended = keeper.end_if(idle) || keeper.end_if(|_| true);
                (taking.join().unwrap(), ended)
            });
            assert_ne!(taken, ended);
        }
    }

    #[test]
    fn a_lab_that_is_still_starting_is_not_idle() {
        let keeper = Keeper::new(Duration::ZERO);
        assert!(!keeper.end_if(|state| state.is_idle(Duration::ZERO)));
    }
}
