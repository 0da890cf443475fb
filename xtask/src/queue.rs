//! The queue of test programs, for several workers: which of them may run beside which others.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a program may run beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Beside {
    /// Nothing on this host. In the lab others may run meanwhile.
    Labs,
    /// Anything: it runs in a lab of its own.
    All,
    /// Anything, but for a program that is alone on this host.
    Others,
}

/// Jobs that wait, and how many run.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    ended: Condvar,
}

struct State<T> {
    waiting: Vec<(Beside, T)>,
    /// Programs that run on this host, those that are alone among them.
    here: usize,
    alone: usize,
}

impl<T> Queue<T> {
    /// The jobs are taken in this order, as far as they may run.
    pub(crate) fn new(jobs: Vec<(Beside, T)>) -> Self {
        Queue {
            state: Mutex::new(State {
                waiting: jobs,
                here: 0,
                alone: 0,
            }),
            ended: Condvar::new(),
        }
    }

    /// Waits for the next job that may run, and does it. Returns false where there is no more.
    pub(crate) fn work(&self, work: impl FnOnce(T)) -> bool {
        let Some((beside, job)) = self.next() else {
            return false;
        };
        work(job);
        self.state().count(beside, false);
        self.ended.notify_all();
        true
    }

    fn next(&self) -> Option<(Beside, T)> {
        let mut state = self.state();
        while !state.waiting.is_empty() {
            if let Some(at) = state.first_allowed() {
                let (beside, job) = state.waiting.remove(at);
                state.count(beside, true);
                return Some((beside, job));
            }
            state = self
                .ended
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn first_allowed(&self) -> Option<usize> {
        self.waiting.iter().position(|(beside, _)| match beside {
            Beside::All => true,
            Beside::Labs => self.here == 0,
            Beside::Others => self.alone == 0,
        })
    }

    fn count(&mut self, beside: Beside, starts: bool) {
        let count = |number: &mut usize| match starts {
            true => *number += 1,
            false => *number -= 1,
        };
        match beside {
            Beside::All => {}
            Beside::Labs => {
                count(&mut self.here);
                count(&mut self.alone);
            }
            Beside::Others => count(&mut self.here),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn jobs_are_taken_in_order_by_one_worker() {
        let jobs = [Beside::Labs, Beside::Others, Beside::All];
        let queue = Queue::new(jobs.into_iter().zip(0..).collect());
        let mut done = Vec::new();
        while queue.work(|job| done.push(job)) {}
        assert_eq!(done, [0, 1, 2]);
    }

    #[test]
    fn one_that_is_alone_has_only_labs_beside_it() {
        let queue = Queue::new(vec![
            (Beside::Labs, "alone"),
            (Beside::Others, "other"),
            (Beside::All, "lab"),
        ]);
        let (log, done) = channel();
        let (begins, alone_begins) = channel();
        let (lets_go, may_end) = channel();
        thread::scope(|scope| {
            let first = log.clone();
            let queue = &queue;
            scope.spawn(move || {
                queue.work(|job| {
                    begins.send(()).unwrap();
                    may_end.recv().unwrap();
                    first.send(job).unwrap();
                })
            });
            alone_begins.recv().unwrap();
            // The other one waits, the lab doesn't.
            assert!(queue.work(|job| log.send(job).unwrap()));
            lets_go.send(()).unwrap();
            assert!(queue.work(|job| log.send(job).unwrap()));
        });
        assert!(!queue.work(|_| panic!("there are no more")));
        drop(log);
        assert_eq!(done.iter().collect::<Vec<_>>(), ["lab", "alone", "other"]);
    }
}
