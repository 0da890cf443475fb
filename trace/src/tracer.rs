//! The tracer: an observer that puts events into a bounded ring, and the thread that takes them out and writes them.
//!
//! A vCPU's thread never waits for the writing thread, and never wakes it: it leaves an event in the ring, or counts it as lost where
//! the ring is full. The writing thread looks for events every few milliseconds.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use minivm_vmm::{Observer, Statistics, Step};

use crate::event::{Event, Exit};
use crate::statistics;

/// The ring's size in events, 6 MiB: at 2 µs an exit, four vCPUs fill it in 30 ms.
const CAPACITY: usize = 1 << 16;
/// The writing thread's pause when the ring is empty.
const PAUSE: Duration = Duration::from_millis(5);

/// Takes the events of a trace, in the writing thread.
pub trait Sink: Send + 'static {
    /// Takes an event.
    fn event(&mut self, event: Event);
    /// There is no event now: what is held back may be written.
    fn idle(&mut self) {}
    /// There will be no more events.
    fn end(&mut self) {}
}

/// An [`Observer`] whose events go to a [`Sink`], on a thread of its own.
pub struct Tracer<S> {
    ring: Arc<Ring>,
    began: Instant,
    writer: Mutex<Option<JoinHandle<S>>>,
}

struct Ring {
    events: ArrayQueue<Event>,
    lost: AtomicU64,
    ended: AtomicBool,
}

impl<S: Sink> Tracer<S> {
    /// Starts the writing thread, `trace`. Times count from `began`.
    ///
    /// # Errors
    ///
    /// The operating system's, where it can't start a thread.
    pub fn start(sink: S, began: Instant) -> std::io::Result<Arc<Self>> {
        Self::with_capacity(sink, began, CAPACITY)
    }

    fn with_capacity(sink: S, began: Instant, capacity: usize) -> std::io::Result<Arc<Self>> {
        let ring = Arc::new(Ring {
            events: ArrayQueue::new(capacity),
            lost: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let shared = ring.clone();
        let writer = thread::Builder::new()
            .name("trace".into())
            .spawn(move || shared.write(sink))?;
        Ok(Arc::new(Tracer {
            ring,
            began,
            writer: Mutex::new(Some(writer)),
        }))
    }

    /// Waits until all events are written, and ends the writing thread; returns its sink, the first time. Events that come later are
    /// dropped.
    pub fn finish(&self) -> Option<S> {
        self.ring.ended.store(true, Ordering::Release);
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        writer.thread().unpark();
        // A sink that panicked has printed that.
        writer.join().ok()
    }

    /// Returns the nanoseconds since the trace began.
    fn at(&self, time: Instant) -> u64 {
        nanoseconds(time.saturating_duration_since(self.began))
    }
}

impl<S> Drop for Tracer<S> {
    fn drop(&mut self) {
        // Ends the writing thread of a tracer that was not finished.
        self.ring.ended.store(true, Ordering::Release);
    }
}

impl<S: Sink> Observer for Tracer<S> {
    fn on_exit(&self, exit: &minivm_vmm::Exit<'_>) {
        let took = nanoseconds(exit.came.elapsed());
        self.ring
            .put(Event::Exit(Exit::of(exit, self.at(exit.came), took)));
    }

    fn on_step(&self, step: Step) {
        let at = self.at(Instant::now());
        self.ring.put_surely(Event::Step { at, step });
    }

    fn on_statistics(&self, files: &minivm_vmm::Result<Vec<Statistics>>) {
        let counts = match files {
            Ok(files) => statistics::read(files)
                .map_err(|error| format!("reading the file of KVM_GET_STATS_FD failed: {error}")),
            Err(error) => Err(with_cause(error)),
        };
        self.ring.put_surely(match counts {
            Ok(counts) => Event::Counts { counts },
            Err(reason) => Event::NoCounts { reason },
        });
    }
}

impl Ring {
    fn put(&self, event: Event) {
        if self.events.push(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Puts an event that comes once in a machine's life: where the ring is full, its oldest event is lost instead.
    fn put_surely(&self, event: Event) {
        if self.events.force_push(event).is_some() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Passes events on until the tracer is finished and the ring empty: the writing thread.
    fn write<S: Sink>(&self, mut sink: S) -> S {
        loop {
            // Read first: what was put before the end is in the ring now.
            let ended = self.ended.load(Ordering::Acquire);
            // As many as the ring holds: a guest that never pauses must not keep this from ending, and from reporting losses.
            for _ in 0..self.events.capacity() {
                let Some(event) = self.events.pop() else {
                    break;
                };
                sink.event(event);
            }
            match self.lost.swap(0, Ordering::Relaxed) {
                0 => {}
                count => sink.event(Event::Lost { count }),
            }
            sink.idle();
            if ended {
                break;
            }
            if self.events.is_empty() {
                thread::park_timeout(PAUSE);
            }
        }
        sink.end();
        sink
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the error and its cause in one line.
fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Passes events on, each after a word from the test.
    struct Held(Receiver<()>, Sender<Event>);

    impl Sink for Held {
        fn event(&mut self, event: Event) {
            let _ = self.0.recv();
            self.1.send(event).unwrap();
        }
    }

    #[test]
    fn a_full_ring_loses_events_and_counts_them() {
        let (go, wait) = channel();
        let (sender, events) = channel();
        let tracer = Tracer::with_capacity(Held(wait, sender), Instant::now(), 4).unwrap();
        tracer.on_step(Step::Begun);
        go.send(()).unwrap();
        // The first is out of the ring, or else it would not have come.
        assert!(matches!(events.recv().unwrap(), Event::Step { .. }));
        for _ in 0..50 {
            tracer.on_step(Step::Built);
        }
        drop(go);
        tracer.finish();
        let (mut steps, mut lost) = (0, 0);
        for event in events {
            match event {
                Event::Lost { count } => lost += count,
                _ => steps += 1,
            }
        }
        assert_eq!(steps + lost, 50);
        assert!(lost >= 40, "{lost}");
    }

    #[test]
    fn what_comes_once_is_not_lost_to_a_full_ring() {
        let (go, wait) = channel();
        let (sender, events) = channel();
        let tracer = Tracer::with_capacity(Held(wait, sender), Instant::now(), 4).unwrap();
        for _ in 0..50 {
            tracer.ring.put(Event::Lost { count: 0 });
        }
        tracer.on_step(Step::Closed);
        drop(go);
        tracer.finish();
        let steps = events
            .iter()
            .filter(|event| matches!(event, Event::Step { .. }));
        assert_eq!(steps.count(), 1);
    }

    /// Lets the guest make another event for each that it takes.
    struct Endless(std::sync::Weak<Ring>);

    impl Sink for Endless {
        fn event(&mut self, _: Event) {
            if let Some(ring) = self.0.upgrade() {
                ring.put(Event::Lost { count: 0 });
            }
        }
    }

    #[test]
    fn a_guest_that_never_pauses_does_not_keep_a_trace_from_ending() {
        let ring = Arc::new(Ring {
            events: ArrayQueue::new(4),
            lost: AtomicU64::new(0),
            ended: AtomicBool::new(true),
        });
        ring.put(Event::Lost { count: 0 });
        ring.write(Endless(Arc::downgrade(&ring)));
        assert!(!ring.events.is_empty());
    }

    #[test]
    fn everything_before_the_end_is_written() {
        let (go, wait) = channel();
        let (sender, events) = channel();
        drop(go);
        let tracer = Tracer::start(Held(wait, sender), Instant::now()).unwrap();
        for _ in 0..1000 {
            tracer.on_step(Step::Built);
        }
        tracer.finish();
        tracer.on_step(Step::Closed);
        assert_eq!(events.iter().count(), 1000);
    }
}
