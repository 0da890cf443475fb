//! A monitor as the process that started it has it: its news, and orders to it.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use minivm_image::io_error::cannot;
use minivm_vmm::{Outcome, SaveFiles, WorkingSet};

use super::protocol::{Ending, Failure, Job, News, Order};
use crate::Error;
use crate::child::{Child, Received, Stream, is_of_the_end};
use crate::confine::Walls;
use crate::jail::CpuGroup;
use crate::snapshot_folder::{SnapshotFolder, of_folder};

/// How long a monitor may take to stop its machine, and to report its end, its pages and its last events. Then it is killed. It takes
/// milliseconds where the host isn't busy.
const GRACE: Duration = Duration::from_secs(10);
/// How often is looked for the end of a process that has closed its socket.
const LOOK: Duration = Duration::from_millis(1);

/// A monitor's process. Clones are handles to the same one, which ends with the last of them.
#[derive(Clone)]
pub struct Monitor(Arc<Handle>);

/// A handle to a monitor that doesn't keep it.
pub(super) struct WeakMonitor(Weak<Handle>);

impl WeakMonitor {
    /// Ends the machine, if there still is one.
    pub(super) fn stop(&self) {
        if let Some(handle) = self.0.upgrade() {
            Monitor(handle).stop();
        }
    }

    /// Kills the process, and waits until it and its control group are gone.
    pub(super) fn kill(&self) {
        if let Some(handle) = self.0.upgrade() {
            handle.0.kill();
            drop(handle.0.wait(|state| state.gone.is_some()));
        }
    }
}

/// The end of a monitor's machine.
#[derive(Debug)]
pub struct MachineEnd {
    /// The machine's outcome.
    pub outcome: Result<Outcome, Error>,
    /// The console's last lines, where they were kept.
    pub(crate) console: Option<String>,
    /// Whether some of the console's output was dropped, at its limit.
    pub truncated: bool,
    /// The most bytes of memory that the monitor has held at a time, its machine's among them.
    pub(crate) memory: Option<u64>,
}

struct Handle(Arc<Shared>);

struct Shared {
    stream: Stream,
    observed: bool,
    /// Whether the process is in a control group, which is to be gone when the machine's end is reported.
    bounded: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The process, until it has been waited for.
    child: Option<Child>,
    /// The control group that bounds its processor time, until it has been waited for.
    group: Option<CpuGroup>,
    built: Option<Result<(), Error>>,
    is_built: bool,
    walls: Option<Walls>,
    saved: Option<Result<(), Failure>>,
    frames_ended: Option<Option<String>>,
    ended: Option<Ending>,
    touched: Option<WorkingSet>,
    /// The most bytes of memory that the process had held at the machine's end.
    memory: Option<u64>,
    /// How the process ended.
    gone: Option<String>,
}

impl Monitor {
    /// Returns a handle that doesn't keep the process.
    pub(super) fn downgrade(&self) -> WeakMonitor {
        WeakMonitor(Arc::downgrade(&self.0))
    }

    /// Starts a monitor in the control group, if one is given, gives it the job and its descriptors, and waits until the machine is built.
    pub(super) fn start(
        job: &Job,
        files: &[BorrowedFd<'_>],
        group: Option<CpuGroup>,
    ) -> Result<Monitor, Error> {
        let (stream, theirs) = Stream::pair().map_err(cannot("create a socket"))?;
        let shared = Arc::new(Shared {
            stream,
            observed: job.observed,
            bounded: group.is_some(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let (started, is_started) = mpsc::channel();
        let work = shared.clone();
        // The process ends with the thread that has started it.
        thread::Builder::new()
            .name("monitor".into())
            .spawn(move || {
                let child = Child::start(&super::ROLE, theirs.as_fd());
                drop(theirs);
                let born = child.map(|child| work.take_in(child, group));
                let is_born = born.is_ok();
                let _ = started.send(born.and_then(|entered| entered));
                if is_born {
                    work.listen();
                }
            })
            .map_err(cannot("start a thread"))?;
        let monitor = Monitor(Arc::new(Handle(shared.clone())));
        let born = is_started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that starts it panicked")));
        born.map_err(cannot("start the monitor's process"))?;
        let sent = shared.stream.send(job, files);
        if sent.is_err() {
            // The process would wait for it for ever.
            shared.stream.end();
        }
        // One that can't be built has no process any more, and no control group.
        let is_built = |state: &State| matches!(state.built, Some(Ok(())));
        let mut state = shared.wait(|state| is_built(state) || state.gone.is_some());
        match (state.built.take(), &state.gone) {
            (Some(built), _) => built?,
            (None, Some(how)) => {
                return Err(match sent {
                    Err(error) if !is_of_the_end(&error) => {
                        cannot("send the machine to its monitor")(error).into()
                    }
                    _ => Error::MonitorDied(how.clone()),
                });
            }
            (None, None) => unreachable!("one of them was waited for"),
        }
        drop(state);
        Ok(monitor)
    }

    /// Pauses the machine, and saves it in `folder` as [`SnapshotFolder::save`] does; returns the bytes that the files take on the
    /// disk. The machine stays paused.
    ///
    /// # Errors
    ///
    /// [`Error::Monitor`] where it can't be saved, [`Error::MonitorDied`] where the monitor ends meanwhile.
    pub fn save(&self, folder: &Path) -> Result<u64, Error> {
        let target = SnapshotFolder::prepare(folder)?;
        let files = target.files();
        let shared = &self.0.0;
        let order = Order::Save(files.name.clone());
        shared.state().saved = None;
        shared.order(&order, &[files.state.as_fd(), files.memory.as_fd()]);
        let mut state = shared
            .wait(|state| state.saved.is_some() || state.ended.is_some() || state.gone.is_some());
        let saved = state.saved.take();
        drop(state);
        match saved {
            Some(saved) => saved.map_err(|error| error.of_folder(folder))?,
            None => return Err(minivm_vmm::Error::NotPaused.into()),
        }
        let size = disk_size(target.files()).map_err(cannot("read the size of the snapshot"))?;
        target.publish()?;
        Ok(size)
    }

    /// Returns the walls around the monitor; `None` where it has none.
    pub fn walls(&self) -> Option<Walls> {
        self.0.0.state().walls.clone()
    }

    /// Runs the machine, whose console is ready.
    pub fn run(&self) {
        self.0.0.order(&Order::Run, &[]);
    }

    /// Lets a paused machine run.
    pub fn resume(&self) {
        self.0.0.order(&Order::Resume, &[]);
    }

    /// Ends the machine, and returns at once. A monitor that doesn't do so in time is killed.
    pub fn stop(&self) {
        self.0.0.clone().stop();
    }

    /// Returns the pages that were touched by the machine, which has ended.
    pub(crate) fn touched(&self) -> Result<WorkingSet, Error> {
        let touched = self.0.0.state().touched.take();
        touched.ok_or_else(|| Error::InMonitor("the monitor reported no touched pages".into()))
    }

    /// Waits for the machine's end, and that of the process, unless that still sends events and has no control group.
    ///
    /// # Errors
    ///
    /// [`Error::MonitorDied`] where the process ended before it had reported the machine's end.
    pub fn end(&self) -> Result<MachineEnd, Error> {
        let shared = &self.0.0;
        let at_end = shared.observed && !shared.bounded;
        let mut state =
            shared.wait(|state| state.gone.is_some() || at_end && state.ended.is_some());
        let memory = state.memory;
        match (state.ended.take(), &state.gone) {
            (Some(ending), _) => Ok(MachineEnd {
                outcome: ending.outcome.map_err(Error::from),
                console: ending.console,
                truncated: ending.truncated,
                memory,
            }),
            (None, Some(how)) => Err(Error::MonitorDied(how.clone())),
            (None, None) => Err(Error::MonitorDied("its end was taken before".into())),
        }
    }

    /// Returns the frames that come over `stream`, whose end the monitor explains.
    pub(super) fn frames(&self, stream: UnixStream) -> Frames {
        Frames {
            stream,
            shared: self.0.0.clone(),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.clone().stop();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the process, and puts it into its control group: before its job comes it has one thread.
    fn take_in(&self, child: Child, group: Option<CpuGroup>) -> io::Result<()> {
        let entered = group.as_ref().map_or(Ok(()), |group| child.enter(group));
        let entered = entered
            .map_err(|error| io::Error::new(error.kind(), format!("its control group: {error}")));
        let mut state = self.state();
        state.child = Some(child);
        state.group = group;
        if entered.is_err() {
            // It ends without a job.
            self.stream.end();
        }
        entered
    }

    /// Waits until the state is as wanted.
    fn wait(&self, wanted: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let waited = self
            .changed
            .wait_while(self.state(), |state| !wanted(state));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an order. Where that can't be done the process has ended, or ends now: it would wait for the order for ever.
    fn order(&self, order: &Order, files: &[BorrowedFd<'_>]) {
        if self.stream.send(order, files).is_err() {
            self.stream.end();
        }
    }

    /// Takes the monitor's news until its process has ended.
    fn listen(&self) {
        let why = loop {
            match self.stream.receive::<News>() {
                Ok(Some(Received { message, .. })) => {
                    let last = matches!(message, News::Failed(_) | News::Ended(_));
                    self.take(message);
                    if last {
                        break None;
                    }
                }
                Ok(None) => break None,
                Err(error) if is_of_the_end(&error) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        let has_ended = self.state().ended.is_some();
        if has_ended && self.observed {
            // The last events may wait for their reader.
            let _ = self.stream.receive::<News>();
        }
        self.reap(why);
    }

    fn take(&self, news: News) {
        let mut state = self.state();
        match news {
            News::Built(walls) => {
                state.built = Some(Ok(()));
                state.is_built = true;
                state.walls = walls;
            }
            News::Failed(failure) if state.is_built => {
                state.ended = Some(Ending {
                    outcome: Err(failure),
                    console: None,
                    truncated: false,
                    touched: None,
                });
            }
            News::Failed(failure) => state.built = Some(Err(failure.into())),
            News::Saved(saved) => state.saved = Some(saved),
            News::FramesEnded(why) => state.frames_ended = Some(why),
            News::Ended(ending) => {
                state.memory = state.child.and_then(|child| child.memory());
                let mut ending = *ending;
                state.touched = ending.touched.take();
                state.ended = Some(ending);
            }
        }
        self.changed.notify_all();
    }

    /// Ends the process, if it hasn't ended by itself, and waits for it.
    fn reap(&self, why: Option<String>) {
        let state = self.state();
        let Some(child) = state.child else {
            return;
        };
        // What it had to say, it has said. One that only closes its socket is about to end, and how is worth knowing.
        let is_over = why.is_some() || state.ended.is_some();
        state.lift();
        drop(state);
        let closed = Instant::now();
        while !is_over && !child.has_ended() && closed.elapsed() < GRACE {
            thread::sleep(LOOK);
        }
        self.stream.end();
        child.kill();
        child.until_ended();
        // Waited for while the state is locked: from then on another process may have its number.
        let mut state = self.state();
        let how = child.wait();
        state.child = None;
        state.group = None;
        state.gone = Some(why.unwrap_or(how));
        self.changed.notify_all();
    }

    /// Kills the process, if it hasn't ended.
    fn kill(&self) {
        let state = self.state();
        state.lift();
        if let Some(child) = &state.child {
            child.kill();
        }
    }

    fn stop(self: Arc<Self>) {
        let state = self.state();
        if state.gone.is_some() {
            return;
        }
        state.lift();
        drop(state);
        self.order(&Order::Stop, &[]);
        let end = move || {
            let waited = self
                .changed
                .wait_timeout_while(self.state(), GRACE, |state| state.gone.is_none());
            drop(waited);
            self.kill();
        };
        // Where there is no thread for it, the process ends with this one.
        let _ = thread::Builder::new().name("stop".into()).spawn(end);
    }
}

impl State {
    /// Lets the process end as fast as it can.
    fn lift(&self) {
        if let Some(group) = &self.group {
            group.lift();
        }
    }
}

fn disk_size(files: &SaveFiles) -> io::Result<u64> {
    let (state, memory) = (files.state.metadata()?, files.memory.metadata()?);
    Ok(state.len() + memory.blocks() * 512)
}

/// The stream of a guest's frames that a monitor passes on.
pub(super) struct Frames {
    stream: UnixStream,
    shared: Arc<Shared>,
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = loop {
            match (&self.stream).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The process was killed with frames from here unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break 0,
                read => break read?,
            }
        };
        if len > 0 || buffer.is_empty() {
            return Ok(len);
        }
        let ended = |state: &State| state.frames_ended.is_some() || state.gone.is_some();
        let mut state = self.shared.wait(ended);
        match state.frames_ended.as_mut().and_then(Option::take) {
            Some(why) => Err(io::Error::new(io::ErrorKind::InvalidData, why)),
            None => Ok(0),
        }
    }
}

impl Drop for Frames {
    /// Lets the guest write on without a reader.
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Read);
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Machine(error) => error.into(),
            Failure::Other(text) => Error::InMonitor(text),
        }
    }
}

impl Failure {
    /// Names the folder that a snapshot was to go to, which the monitor doesn't know.
    fn of_folder(self, folder: &Path) -> Error {
        match self {
            Failure::Machine(error) => of_folder(error, folder).into(),
            other => other.into(),
        }
    }
}
