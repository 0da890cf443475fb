//! The keeper: a process that has a lab, and lets commands use it.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{AgentReport, FAILED, IDLE, Note, PORTS, REPORT_MAX, folder, listen, socket};
use crate::Error::NoTemplate;
use crate::lab::frame::{self, Kind};
use crate::lab::{self, LabRequest, Stop};
use crate::lab_machine::LabMachine;
use crate::output::Kept;
use crate::printable::printable;
use crate::templates::error::failed;
use crate::templates::{Error, Recipe};

/// How long a lab may take until its template is there: less than anybody waits for it, and long enough for an interpreter that
/// imports much.
const START_LIMIT: Duration = Duration::from_secs(140);
/// How often it is looked whether the lab is still used.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The most characters that are passed on of why there is no template.
const MESSAGE_MAX: usize = 500;
/// How long a command waits for a machine where all are in use: a fraction of what one takes to boot.
const PORT_WAIT: Duration = Duration::from_millis(200);
/// How long a machine may take to end when its command has gone.
const END_WAIT: Duration = Duration::from_secs(10);

/// Keeps a lab for the template until nobody has used it for a while. Does nothing where somebody else keeps one.
///
/// # Errors
///
/// Where the lab can't be started, or its machine can't be made.
pub fn run(recipe: &Recipe, cache: &Path) -> Result<(), Error> {
    let key = recipe.key()?;
    let path = socket(cache, &key);
    let mut private = DirBuilder::new();
    private
        .recursive(true)
        .mode(0o700)
        .create(folder(cache))
        .map_err(failed("create", &folder(cache)))?;
    let Some(_alone) = lock(&path)? else {
        return Ok(());
    };
    // Of one that was killed.
    let _ = fs::remove_file(&path);
    let listener = listen(&path).map_err(failed("listen at", &path))?;
    let _noted = write_note(&path, recipe)?;
    let _removed = RemoveOnDrop(path);
    let keeper = Arc::new(Keeper::new(IDLE));
    let accepting = keeper.clone();
    thread::spawn(move || accepting.accept(&listener));
    let watching = keeper.clone();
    thread::spawn(move || watching.watch());
    let ended = run_lab(recipe, &keeper);
    if keeper.state().start_timed_out {
        // Those who wait are hung up on, and may start another keeper.
        let why = format!("its lab was not ready within {START_LIMIT:?}");
        return Err(NoTemplate(why).into());
    }
    let failed = keeper.change(|state| match (&state.stage, ended) {
        (Stage::Starting, Err(why)) => {
            // Those who ask now are told at once that they have to do without.
            state.stage = Stage::Failed(why);
            true
        }
        // One that was there can be made again.
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

/// A lab with the template's machine and the ports' other ends.
fn request(recipe: &Recipe) -> Result<(LabRequest, VecDeque<UnixStream>), Error> {
    let mut recipe = recipe.clone();
    recipe.machine.console = false;
    // The template itself, and a machine a port.
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

/// Runs a lab to its end.
fn run_lab(recipe: &Recipe, keeper: &Arc<Keeper>) -> Result<(), String> {
    let (mut request, ports) = request(recipe).map_err(|error| error.to_string())?;
    keeper.change(|state| state.free = ports);
    let messages = Kept::default();
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

struct Keeper {
    state: Mutex<State>,
    changed: Condvar,
    stop: Stop,
    /// How long the lab stays that nobody uses.
    idle: Duration,
}

struct State {
    stage: Stage,
    /// Ports that nobody uses; that which has waited longest first, for it has had time to make a machine.
    free: VecDeque<UnixStream>,
    sessions: usize,
    /// When somebody last used it.
    used: Instant,
    /// Whether the lab was stopped because it was not ready in time.
    start_timed_out: bool,
    /// Why the agent could not make the template.
    failed: Option<String>,
}

#[derive(Debug, PartialEq)]
enum Stage {
    Starting,
    Ready,
    /// There can be none, for this reason.
    Failed(String),
    /// It is being ended, or has been. No session begins any more; another keeper may have a lab again.
    ShuttingDown,
}

/// Why a command gets no machine.
#[derive(Debug, PartialEq)]
enum NoMachine {
    /// For this reason.
    Because(String),
    /// This lab is being ended. The command is hung up on, and may boot or start another lab.
    ShuttingDown,
}

/// The agent's stdout: an [`AgentReport`], a line.
struct Reports {
    keeper: Arc<Keeper>,
    /// What has come of it.
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

    /// One that is being ended already is of no use any more.
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
            // Where there is no thread for it, it is hung up on.
            let _ = thread::Builder::new().spawn(move || keeper.serve(&stream));
        }
    }

    /// Ends the lab when nobody uses it, or where it isn't ready in time.
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

    /// Ends the lab if that is wanted and nobody uses it; tells whether it is being ended. That is decided and settled in one
    /// go: a command has its machine before, or gets none.
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

    /// Waits until this connection ends, which it does with this process.
    fn stay_connected() -> ! {
        loop {
            thread::park();
        }
    }

    /// Answers those who ask, for so long or until it is to leave.
    fn keep_refusing(&self, limit: Duration) {
        let refusing = |state: &mut State| state.stage != Stage::ShuttingDown;
        drop(
            self.changed
                .wait_timeout_while(self.state(), limit, refusing),
        );
    }

    /// Serves a command, or tells it why not. Who doesn't know how to ask gets nothing.
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
        self.change(|state| {
            state.sessions -= 1;
            state.used = Instant::now();
            if clean {
                state.free.push_back(port);
            }
        });
    }

    /// A port, when the lab is there and one is free.
    fn take_port(&self) -> Result<UnixStream, NoMachine> {
        let starting = |state: &mut State| state.stage == Stage::Starting;
        let state = self.changed.wait_while(self.state(), starting);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        // Many runs are short, and one that has just ended gives its machine back a moment later.
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

    /// Passes frames on between a command and its machine. Whether the port can be used again.
    fn session(&self, client: &UnixStream, port: &UnixStream) -> bool {
        let unjailed = lab::unjailed().unwrap_or_default();
        if frame::send(Kind::Started, unjailed.as_bytes(), client).is_err() {
            // It was not begun.
            return true;
        }
        thread::scope(|scope| {
            let (over, ended) = mpsc::channel();
            let input = scope.spawn(move || self.pass_in(client, port, &ended));
            let ended = pass_out(port, client);
            let _ = over.send(());
            // Whoever still waits for the command's input waits in vain.
            let _ = client.shutdown(Shutdown::Both);
            let hung_up = input.join().unwrap_or(false);
            ended && hung_up
        })
    }

    /// What the command says, until it hangs up. Whether the machine has heard all of it.
    fn pass_in(&self, client: &UnixStream, port: &UnixStream, ended: &Receiver<()>) -> bool {
        let mut from = BufReader::with_capacity(2 * frame::MAX_PAYLOAD, client);
        let mut payload = Vec::new();
        while let Ok(Some(kind @ (Kind::Stdin | Kind::Ping))) =
            frame::receive(&mut from, &mut payload)
        {
            if frame::send(kind, &payload, port).is_err() {
                return false;
            }
        }
        let sent = frame::send(Kind::Hangup, &[], port).is_ok();
        if ended.recv_timeout(END_WAIT) == Err(RecvTimeoutError::Timeout) {
            // Nobody gets this port any more.
            let _ = port.shutdown(Shutdown::Both);
        }
        sent
    }
}

/// What the machine says, until it has ended. Whether it has.
fn pass_out(port: &UnixStream, client: &UnixStream) -> bool {
    let mut payload = Vec::new();
    let mut listening = true;
    loop {
        let Ok(Some(kind)) = frame::receive(port, &mut payload) else {
            return false;
        };
        // A command that has gone hears nothing; its machine is told, and its last words are waited for.
        listening = listening && frame::send(kind, &payload, client).is_ok();
        if kind == Kind::Exit {
            return true;
        }
    }
}

/// How many bytes programs can have before something has to be swapped out (proc(5), "/proc/meminfo").
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// The lock of whoever keeps this lab; `None` where that is somebody else.
fn lock(socket: &Path) -> Result<Option<File>, Error> {
    let path = socket.with_extension("lock");
    let mut options = File::options();
    options.read(true).write(true).create(true).mode(0o600);
    let file = options.open(&path).map_err(failed("open", &path))?;
    match file.try_lock() {
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        Ok(()) => Ok(Some(file)),
    }
}

/// Tells others what is kept here.
fn write_note(socket: &Path, recipe: &Recipe) -> Result<RemoveOnDrop, Error> {
    let path = Note::path(socket);
    let note = Note {
        process: std::process::id(),
        recipe: recipe.clone(),
    };
    let text = serde_json::to_vec(&note).expect("plain data can be written");
    fs::write(&path, text).map_err(failed("write", &path))?;
    Ok(RemoveOnDrop(path))
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that is ready, with a machine whose other end is returned.
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
    fn a_lab_that_is_being_ended_hands_out_no_machine() {
        let (keeper, _machine) = ready();
        assert!(keeper.end_if(|_| true));
        assert_eq!(keeper.take_port().unwrap_err(), NoMachine::ShuttingDown);
        // Nor does one that has its template only then.
        let keeper = Keeper::new(Duration::ZERO);
        assert!(keeper.end_if(|_| true));
        keeper.change(State::set_ready);
        assert_eq!(keeper.take_port().unwrap_err(), NoMachine::ShuttingDown);
    }

    #[test]
    fn a_lab_that_is_used_is_not_ended() {
        let (keeper, _machine) = ready();
        let _port = keeper.take_port().unwrap();
        assert!(!keeper.end_if(|_| true));
        assert_eq!(keeper.state().stage, Stage::Ready);
    }

    #[test]
    fn a_lab_is_ended_or_used_and_never_both() {
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
