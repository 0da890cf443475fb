//! Machines made ahead: what a fork costs is mostly that KVM creates a machine, and that can be done before one is wanted.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::error::{Error, Result};
use crate::snapshot::{Prepared, Snapshot};

/// Keeps machines of one snapshot ready, made ahead by a thread of its own. Each is handed out once, to whichever thread
/// takes it; another is made in its place. Dropping the pool ends its thread, and the machines that nobody has taken.
///
/// A machine that is ready takes no memory for its guest yet, but a few descriptors and what KVM has for it.
///
/// ```no_run
/// use minivm_vmm::{Builder, Pool, Snapshot};
///
/// let pool = Pool::new(&Snapshot::open("warm")?, 4)?;
/// // … whenever one is wanted:
/// let outcome = Builder::restore_prepared(pool.take()?).console_output(std::io::stdout()).build()?.run()?;
/// # minivm_vmm::Result::Ok(())
/// ```
pub struct Pool {
    shared: Arc<Shared>,
    maker: Option<JoinHandle<()>>,
}

struct Shared {
    snapshot: Snapshot,
    /// How many are to be ready.
    size: usize,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    ready: VecDeque<Prepared>,
    /// What went wrong while one was made, until somebody has been told.
    error: Option<Error>,
    /// None are made until somebody gets a machine: it would go wrong again and again.
    resting: bool,
    /// The pool is dropped.
    ended: bool,
}

impl Pool {
    /// A pool that is to have `size` machines ready, and begins to make them.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::check_host`], and [`Error::Host`] where its thread can't be started.
    pub fn new(snapshot: &Snapshot, size: usize) -> Result<Self> {
        snapshot.check_host()?;
        let shared = Arc::new(Shared {
            snapshot: snapshot.clone(),
            size,
            inner: Mutex::default(),
            changed: Condvar::new(),
        });
        let made = shared.clone();
        let maker = thread::Builder::new()
            .name("pool".into())
            .spawn(move || made.make())
            .map_err(Error::host("a thread for a pool of machines"))?;
        Ok(Pool {
            shared,
            maker: Some(maker),
        })
    }

    /// A machine that nobody else has: at once where one is ready, or else made in this call.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::prepare`]. What goes wrong while machines are made ahead is told once, by the next call; no more are made
    /// ahead until a later call gets a machine.
    pub fn take(&self) -> Result<Prepared> {
        // Those that are ready have it mapped, and would be refused later.
        self.shared.snapshot.check_unchanged()?;
        let taken = match self.shared.next()? {
            Some(ready) => ready,
            None => self.shared.snapshot.prepare()?,
        };
        self.shared.lock().resting = false;
        self.shared.changed.notify_all();
        Ok(taken)
    }

    /// How many machines are ready now.
    pub fn ready(&self) -> usize {
        self.shared.lock().ready.len()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        // It holds the machines, and what it is making now.
        let _ = self.maker.take().map(JoinHandle::join);
    }
}

impl Shared {
    /// One that is ready, or what went wrong since the last call.
    fn next(&self) -> Result<Option<Prepared>> {
        let mut inner = self.lock();
        match inner.error.take() {
            Some(error) => Err(error),
            None => Ok(inner.ready.pop_front()),
        }
    }

    /// Makes machines whenever there are too few, until the pool is dropped.
    fn make(&self) {
        while self.wait_until_wanted() {
            let made = self.snapshot.prepare();
            let mut inner = self.lock();
            match made {
                Ok(prepared) => inner.ready.push_back(prepared),
                Err(error) => {
                    inner.error = Some(error);
                    inner.resting = true;
                }
            }
        }
        self.lock().ready.clear();
    }

    /// Tells whether there is to be another one; if not, the pool has been dropped.
    fn wait_until_wanted(&self) -> bool {
        let mut inner = self.lock();
        while !inner.ended && (inner.resting || inner.ready.len() >= self.size) {
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        !inner.ended
    }

    /// Only held by code that doesn't panic.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
