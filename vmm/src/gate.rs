//! The door between the vCPU threads and the guest: how a machine is paused, resumed and stopped.
//!
//! Every vCPU thread asks [`Gate::is_open`] before it enters the guest, and waits at the closed gate ([`Gate::wait_at`]). To get a
//! thread out of the guest, `pause` and `stop` change the phase, set the vCPU's `immediate_exit` flag and send its thread a
//! signal whose handler does nothing. The signal ends a `KVM_RUN` that is under way; the flag ends one that is about to begin.
//! The phase is set first, so a thread that has cleared its flag sees the new phase.
//! (KVM API, 5 "The kvm_run structure", `immediate_exit`.)

#![allow(
    unsafe_code,
    reason = "the flag lies in memory that is shared with the kernel, and signals go to raw threads"
)]

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::arch::vcpu_state::{Inventory, VcpuState};
use crate::error::{Error, Result};
use crate::outcome::Outcome;

/// The interval at which a thread that hasn't left the guest is signalled again.
const REPEAT: Duration = Duration::from_millis(20);

/// The phase of a machine, which decides what its vCPUs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Paused,
    Running,
    /// Paused for a moment, to find out whether all vCPUs are halted for ever.
    Checking,
    Ended,
}

/// The gate of one machine.
pub(crate) struct Gate {
    /// A copy of the phase that can be read without a lock, once every exit.
    phase: AtomicU8,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Becomes readable when the machine has ended.
    ended: EventFd,
}

struct Inner {
    /// Whether the gate has been opened once.
    begun: bool,
    /// Whether the paused machine is being saved: it stays paused.
    held: bool,
    /// The reason for the machine's end, once it has ended, until [`Gate::take_outcome`].
    outcome: Option<Result<Outcome>>,
    /// One slot per vCPU.
    slots: Vec<Slot>,
}

/// The gate's record of one vCPU.
#[derive(Default)]
struct Slot {
    /// The means to get its thread out of the guest, while it has a thread.
    kick: Option<Kick>,
    /// Whether its thread waits at the gate.
    parked: bool,
    /// The request for its state, until its thread takes it.
    asked: Option<Arc<Inventory>>,
    /// The thread's answer to `asked`.
    saved: Option<Result<VcpuState>>,
    /// Whether it was halted for ever when its thread last looked; outdated, perhaps, unless `sure`.
    halted: bool,
    /// Whether its thread has looked when all were parked, in the present check.
    sure: bool,
}

impl Gate {
    /// Makes a closed gate for `vcpus` vCPUs.
    pub(crate) fn new(vcpus: u8) -> Result<Arc<Self>> {
        register_signal_handler(SIGRTMIN(), ignore)
            .map_err(Error::host("a handler for the signal SIGRTMIN"))?;
        let ended = EventFd::new(libc::EFD_CLOEXEC).map_err(Error::host("an event descriptor"))?;
        Ok(Arc::new(Gate {
            phase: AtomicU8::new(Phase::Paused as u8),
            inner: Mutex::new(Inner {
                begun: false,
                held: false,
                outcome: None,
                slots: (0..vcpus).map(|_| Slot::default()).collect(),
            }),
            changed: Condvar::new(),
            ended,
        }))
    }

    /// Registers the calling thread as the one that runs vCPU `id`. `immediate_exit` must stay valid until
    /// [`leave`](Self::leave) has returned.
    pub(crate) fn join(&self, id: u8, immediate_exit: *mut u8) {
        self.lock().slots[usize::from(id)].kick = Some(Kick::of_this_thread(immediate_exit));
    }

    /// Removes the calling thread, which doesn't run vCPU `id` any more.
    pub(crate) fn leave(&self, id: u8) {
        self.lock().slots[usize::from(id)].kick = None;
        self.changed.notify_all();
    }

    /// Returns whether the guest may be entered without waiting. If not, the caller brings its vCPU to rest, which may have an
    /// access to a device unfinished, and calls [`wait_at`](Self::wait_at). A fresh vCPU, which has none, is no exception.
    pub(crate) fn is_open(&self) -> bool {
        self.phase() == Phase::Running
    }

    /// Waits while the machine is paused, with vCPU `id` at rest. `halted` looks whether it is halted for ever; `save` reads its
    /// state, when [`Held::save`] asks for it.
    pub(crate) fn wait_at(
        &self,
        id: u8,
        halted: &dyn Fn() -> bool,
        save: &dyn Fn(&Inventory) -> Result<VcpuState>,
    ) -> Passage {
        let slot = usize::from(id);
        let mut inner = self.lock();
        inner.slots[slot].halted = halted();
        inner.slots[slot].parked = true;
        self.decide(&mut inner);
        self.changed.notify_all();
        let mut paused = false;
        while matches!(self.phase(), Phase::Paused | Phase::Checking) {
            paused |= self.phase() == Phase::Paused;
            if self.phase() == Phase::Checking && inner.all_parked() && !inner.slots[slot].sure {
                // Another vCPU may have woken this one after its thread had parked, and halted itself then.
                inner.slots[slot].halted = halted();
                inner.slots[slot].sure = true;
                self.decide(&mut inner);
                self.changed.notify_all();
                continue;
            }
            inner = match inner.slots[slot].asked.take() {
                Some(inventory) => {
                    inner.slots[slot].saved = Some(save(&inventory));
                    self.changed.notify_all();
                    inner
                }
                None => self.wait(inner),
            };
        }
        inner.slots[slot].parked = false;
        match self.phase() == Phase::Running {
            true => Passage::Open { paused },
            false => Passage::Ended,
        }
    }

    /// Keeps a paused machine paused until the returned guard is dropped.
    pub(crate) fn hold(&self) -> Result<Held<'_>> {
        let mut inner = self.lock();
        while inner.held || self.phase() == Phase::Paused && inner.is_starting() {
            inner = self.wait(inner);
        }
        let all_there = inner
            .slots
            .iter()
            .all(|slot| slot.kick.is_some() && slot.parked);
        if self.phase() != Phase::Paused || !all_there {
            return Err(Error::NotPaused);
        }
        inner.held = true;
        Ok(Held { gate: self })
    }

    /// Ends a check when all vCPUs are parked, and all threads have looked at theirs since: only then can none wake another.
    fn decide(&self, inner: &mut Inner) {
        if self.phase() != Phase::Checking || !inner.all_parked() {
            return;
        }
        if inner.slots.iter().any(|slot| !slot.halted) {
            self.set_phase(Phase::Running);
        } else if inner.slots.iter().all(|slot| slot.sure) {
            self.end_locked(inner, Ok(Outcome::Stuck));
        }
    }

    /// Stops every vCPU and waits until all have stopped.
    pub(crate) fn pause(&self) {
        let mut inner = self.lock();
        match self.phase() {
            Phase::Running => {
                self.set_phase(Phase::Paused);
                inner.kick_all();
            }
            Phase::Checking => self.set_phase(Phase::Paused),
            Phase::Paused | Phase::Ended => {}
        }
        while self.phase() == Phase::Paused && !inner.all_parked() {
            inner = self.wait_and_kick(inner);
        }
    }

    /// Lets a paused machine run.
    pub(crate) fn resume(&self) {
        let mut inner = self.lock();
        while inner.held && self.phase() == Phase::Paused {
            inner = self.wait(inner);
        }
        inner.begun = true;
        if self.phase() == Phase::Paused {
            self.set_phase(Phase::Running);
        }
        self.changed.notify_all();
    }

    /// Ends the machine. The first outcome counts.
    pub(crate) fn end(&self, outcome: Result<Outcome>) {
        self.end_locked(&mut self.lock(), outcome);
    }

    fn end_locked(&self, inner: &mut Inner, outcome: Result<Outcome>) {
        if self.phase() == Phase::Ended {
            return;
        }
        self.set_phase(Phase::Ended);
        inner.outcome = Some(outcome);
        inner.kick_all();
        self.changed.notify_all();
        if let Err(error) = self.ended.write(1) {
            // The event loop sees the end when its timer next wakes it.
            log::warn!("the event loop can't be woken: {error}");
        }
    }

    /// Records whether vCPU `id` is halted for ever. If all vCPUs seem to be, they are stopped for a closer look: one that
    /// was halted a moment ago may have been woken by another since.
    ///
    /// The lock is also a fence between two steps of the vCPU's thread: clearing `immediate_exit`, which comes before this
    /// call, and reading the phase in [`is_open`](Self::is_open), which comes after it. A kick sets the phase and then the flag,
    /// under the same lock. If the kick was first, the clearing may have undone its flag, but `is_open` sees its phase. If this
    /// call was first, the flag is set after it was cleared, and ends the next `KVM_RUN`. Without the lock, the clearing could
    /// take effect after the kick's flag was set and the phase still be read from before: the kick would be lost.
    pub(crate) fn note_halted(&self, id: u8, halted: bool) {
        let mut inner = self.lock();
        inner.slots[usize::from(id)].halted = halted;
        if self.phase() == Phase::Running && inner.slots.iter().all(|slot| slot.halted) {
            self.set_phase(Phase::Checking);
            inner.slots.iter_mut().for_each(|slot| slot.sure = false);
            inner.kick_all();
        }
    }

    /// Makes every vCPU leave the guest for a moment, so that its thread looks whether it has halted.
    pub(crate) fn nudge(&self) {
        self.lock().kick_all();
    }

    /// Returns the descriptor that becomes readable when the machine has ended.
    pub(crate) fn ended(&self) -> &EventFd {
        &self.ended
    }

    /// Waits until no thread runs a vCPU any more. A thread that is blocked in writing the guest's output notices the end only
    /// when a signal interrupts that write, so the signal is repeated.
    pub(crate) fn wait_until_left(&self) {
        let mut inner = self.lock();
        while inner.slots.iter().any(|slot| slot.kick.is_some()) {
            inner = self.wait_and_kick(inner);
        }
    }

    /// Takes the reason for the machine's end.
    pub(crate) fn take_outcome(&self) -> Option<Result<Outcome>> {
        self.lock().outcome.take()
    }

    /// Returns whether the machine has ended: its threads must then wait for nothing any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.phase() == Phase::Ended
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Paused,
            1 => Phase::Running,
            2 => Phase::Checking,
            _ => Phase::Ended,
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    fn wait<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.changed
            .wait(inner)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, and kicks the threads again after a while: the kernel sends no more signals than its user may have pending.
    fn wait_and_kick<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        let (inner, waited) = self
            .changed
            .wait_timeout(inner, REPEAT)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            inner.kick_all();
        }
        inner
    }

    /// Takes the lock. Code that holds it doesn't panic, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Returns whether every vCPU that has a thread waits at the gate.
    fn all_parked(&self) -> bool {
        self.slots
            .iter()
            .all(|slot| slot.kick.is_none() || slot.parked)
    }

    /// Returns whether threads of vCPUs have come to the gate, and it is yet to be opened for the first time: it would be, whatever is done
    /// with the machine before.
    fn is_starting(&self) -> bool {
        !self.begun && self.slots.iter().any(|slot| slot.kick.is_some())
    }

    fn kick_all(&self) {
        self.slots
            .iter()
            .filter_map(|slot| slot.kick.as_ref())
            .for_each(Kick::send);
    }
}

/// The end of a vCPU's wait at the gate.
pub(crate) enum Passage {
    /// The guest may be entered.
    Open {
        /// Whether the machine was paused meanwhile.
        paused: bool,
    },
    /// The machine has ended.
    Ended,
}

/// A guard that keeps a paused machine paused as long as it lives.
pub(crate) struct Held<'a> {
    gate: &'a Gate,
}

impl Held<'_> {
    /// Collects the states of all vCPUs from their threads.
    pub(crate) fn save(&self, inventory: Inventory) -> Result<Vec<VcpuState>> {
        let inventory = Arc::new(inventory);
        let mut inner = self.gate.lock();
        for slot in &mut inner.slots {
            slot.asked = Some(inventory.clone());
            slot.saved = None;
        }
        self.gate.changed.notify_all();
        while self.gate.phase() == Phase::Paused
            && inner.slots.iter().any(|slot| slot.saved.is_none())
        {
            inner = self.gate.wait(inner);
        }
        let answers = inner.slots.iter_mut().map(|slot| slot.saved.take());
        answers
            .map(|answer| answer.unwrap_or(Err(Error::NotPaused)))
            .collect()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.gate.lock().held = false;
        self.gate.changed.notify_all();
    }
}

/// The means to get one thread out of the guest: a signal, and its vCPU's `immediate_exit`.
struct Kick {
    thread: libc::pthread_t,
    immediate_exit: *mut u8,
}

// SAFETY: the pointer is used only while the slot holds it, under the gate's lock, and `Gate::join` demands that it is
// valid until `Gate::leave`, which takes the same lock to remove it.
unsafe impl Send for Kick {}

impl Kick {
    fn of_this_thread(immediate_exit: *mut u8) -> Self {
        // SAFETY: it has no condition.
        let thread = unsafe { libc::pthread_self() };
        Kick {
            thread,
            immediate_exit,
        }
    }

    fn send(&self) {
        // SAFETY: valid, as said above; a byte is always aligned; the other side of it is the kernel, which only reads
        // it, and the vCPU's thread, which clears it through kvm-ioctls.
        let flag = unsafe { AtomicU8::from_ptr(self.immediate_exit) };
        flag.store(1, Ordering::SeqCst);
        // SAFETY: the thread has not ended: before it does, it removes its slot's kick.
        let error = unsafe { libc::pthread_kill(self.thread, SIGRTMIN()) };
        if error != 0 {
            // With too many signals of this user's pending, it fails until they are taken; the gate repeats it.
            let error = io::Error::from_raw_os_error(error);
            log::debug!("a vCPU's thread can't be signalled: {error}");
        }
    }
}

/// The signal's only purpose is to end a system call.
extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

#[cfg(test)]
mod tests;
