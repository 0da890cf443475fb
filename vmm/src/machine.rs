//! A built machine: its threads, its event loop, its end.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use crate::arch::vcpu_state::{Inventory, VcpuState};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::input::Pump;
use crate::memory::{GuestRam, Memory};
use crate::observer::{Observer, Step, Steps};
use crate::outcome::Outcome;
use crate::snapshot::SaveFiles;
use crate::snapshot::capture::Frozen;
use crate::statistics::Statistics;
use crate::vcpu::{Platform, Vcpu};

/// The first and the longest interval between checks whether all vCPUs are halted for ever, which KVM doesn't report by itself.
/// The longer a machine has run, the longer the interval: each check costs an exit a vCPU, 70 µs in all, and a thousand idle
/// machines that are checked ten times a second keep a processor busy.
const HALT_CHECK: Duration = Duration::from_millis(100);
const HALT_CHECK_MAX: Duration = Duration::from_millis(800);

/// What each vCPU's thread calls first.
type EntryFn = dyn Fn() -> io::Result<()> + Send + Sync;
pub(crate) type Entry = Arc<EntryFn>;

/// A machine that has been built and is paused before its first instruction.
pub struct Machine {
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) platform: Arc<Platform>,
    pub(crate) pumps: Vec<Pump>,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    pub(crate) vcpu_thread: Option<Entry>,
    // Last, so that it is unmapped after KVM's descriptors, which the others hold, are closed.
    pub(crate) ram: Arc<GuestRam>,
}

impl Machine {
    /// Returns a handle that pauses, resumes, saves and stops the machine while it runs.
    pub fn control(&self) -> Control {
        Control {
            gate: self.platform.gate.clone(),
            platform: Arc::downgrade(&self.platform),
            ram: Arc::downgrade(&self.ram),
        }
    }

    /// Saves the machine, which has not run yet, as [`Control::snapshot_into`] does with one that runs.
    ///
    /// # Errors
    ///
    /// Those of [`Control::snapshot_into`], except for [`Error::NotPaused`].
    pub fn snapshot_into(&self, files: &SaveFiles) -> Result<()> {
        let inventory = Inventory::of_this_host(&self.platform.kvm, &self.platform.vm)?;
        let vcpus = self
            .vcpus
            .iter()
            .map(|vcpu| VcpuState::of(vcpu, &inventory))
            .collect::<Result<_>>()?;
        let frozen = Frozen::new(&self.platform);
        frozen.save(vcpus, &self.ram, files)
    }

    /// Returns a handle to the machine's RAM.
    pub fn memory(&self) -> Memory {
        Memory::new(self.ram.clone())
    }

    /// Runs the machine to its end: each vCPU on a thread of its own, the serial input on the calling thread.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] where a thread can't be started, [`Error::VcpuThread`] where one can't be prepared, [`Error::Exit`] or [`Error::Kvm`] where a vCPU can't go on,
    /// [`Error::File`] where persistent memory can't be read, [`Error::Output`] where the serial output can't be written.
    pub fn run(self) -> Result<Outcome> {
        let Machine {
            vcpus,
            platform,
            pumps,
            observer,
            vcpu_thread,
            ram,
        } = self;
        let steps = Steps::to(observer.as_ref());
        let statistics = observer
            .as_ref()
            .map(|_| Statistics::open_all(&platform.vm, &vcpus));
        let gate = platform.gate.clone();
        let (threads, started) = start(vcpus, &platform, vcpu_thread.as_ref());
        let served = started.and_then(|()| {
            gate.resume();
            serve(&gate, pumps)
        });
        if let Err(error) = served {
            gate.end(Err(error));
        }
        gate.wait_until_left();
        for thread in threads {
            // A thread that panicked has reported that to the gate.
            let _ = thread.join();
        }
        steps.reached(Step::Ended);
        if let (Some(observer), Some(statistics)) = (&observer, statistics) {
            observer.on_statistics(&statistics);
        }
        let outcome = gate
            .take_outcome()
            .expect("the machine has ended, and the outcome is taken once");
        // The gate can't know what the guest had done with its interrupts.
        let outcome = outcome.map(|outcome| match outcome {
            Outcome::Stuck => platform.board.halt(),
            other => other,
        });
        let outcome = outcome.map_err(|error| ram.explain(error));
        drop(platform);
        drop(ram);
        steps.reached(Step::Closed);
        outcome
    }
}

/// Starts a thread for each vCPU; the threads call `enter`, if there is one, and wait at the gate. Returns those that were started
/// even if one could not be.
fn start(
    vcpus: Vec<Vcpu>,
    platform: &Arc<Platform>,
    enter: Option<&Entry>,
) -> (Vec<JoinHandle<()>>, Result<()>) {
    let mut threads = Vec::new();
    let (sender, entered) = channel();
    for vcpu in vcpus {
        let platform = platform.clone();
        let enter = enter.map(|enter| (enter.clone(), sender.clone()));
        let builder = thread::Builder::new()
            .name(format!("vcpu{}", vcpu.id))
            .stack_size(256 << 10);
        let run = move || {
            if enter.is_none_or(|(enter, sender)| passes(&*enter, &sender)) {
                vcpu.run(&platform);
            }
        };
        match builder.spawn(run) {
            Ok(thread) => threads.push(thread),
            Err(error) => return (threads, Err(Error::host("a thread for a vCPU")(error))),
        }
    }
    drop(sender);
    let wanted = if enter.is_some() { threads.len() } else { 0 };
    let all = (0..wanted).try_for_each(|_| match entered.recv() {
        Ok(entered) => entered.map_err(Error::VcpuThread),
        Err(_) => Err(Error::VcpuThread(io::Error::other("it panicked"))),
    });
    (threads, all)
}

/// Calls `enter` on a vCPU's thread, and sends its result to the machine's. Returns whether it has succeeded.
fn passes(enter: &EntryFn, sender: &Sender<io::Result<()>>) -> bool {
    let entered = enter();
    let passes = entered.is_ok();
    // The machine's thread is gone where another vCPU's could not be started.
    sender.send(entered).is_ok() && passes
}

/// Moves input to the serial ports until the machine ends.
fn serve(gate: &Arc<Gate>, pumps: Vec<Pump>) -> Result<()> {
    let mut events = EventLoop::new_with_capacity(8).map_err(event_loop)?;
    let watch = Watch::new(gate.clone())?;
    let descriptors = [gate.ended().as_raw_fd(), watch.timer.as_raw_fd()];
    subscribe(&mut events, Box::new(watch), &descriptors)?;
    for pump in pumps {
        let room = pump.room();
        subscribe(&mut events, Box::new(pump), &[room])?;
    }
    while !gate.has_ended() {
        events.run().map_err(event_loop)?;
    }
    Ok(())
}

type EventLoop = EventManager<Box<dyn MutEventSubscriber>>;

/// Adds a subscriber and the descriptors whose input wakes it: `init` of the subscriber's own can't fail, and epoll can.
fn subscribe(
    events: &mut EventLoop,
    subscriber: Box<dyn MutEventSubscriber>,
    descriptors: &[RawFd],
) -> Result<()> {
    let id = events.add_subscriber(subscriber);
    let mut ops = events.event_ops(id).map_err(event_loop)?;
    for descriptor in descriptors {
        let input = Events::new_raw(*descriptor, EventSet::IN);
        ops.add(input).map_err(event_loop)?;
    }
    Ok(())
}

/// Wraps a failure of the event loop.
fn event_loop(error: event_manager::Error) -> Error {
    Error::host("an event loop")(match error {
        event_manager::Error::Epoll(errno) => errno.into(),
        other => io::Error::other(other),
    })
}

/// The event loop's watch: it wakes the loop at the machine's end, and nudges the vCPUs when a check for halted ones is due.
struct Watch {
    gate: Arc<Gate>,
    timer: TimerFd,
    wait: Duration,
}

impl Watch {
    fn new(gate: Arc<Gate>) -> Result<Self> {
        let mut timer = TimerFd::new().map_err(Error::host("a timer"))?;
        let wait = HALT_CHECK;
        timer.reset(wait, None).map_err(Error::host("a timer"))?;
        Ok(Watch { gate, timer, wait })
    }
}

impl MutEventSubscriber for Watch {
    fn init(&mut self, _ops: &mut EventOps) {}

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.timer.as_raw_fd() {
            let _ = self.timer.wait();
            self.gate.nudge();
            self.wait = (self.wait * 2).min(HALT_CHECK_MAX);
            if let Err(error) = self.timer.reset(self.wait, None) {
                self.gate.end(Err(Error::host("a timer")(error)));
            }
        }
    }
}
