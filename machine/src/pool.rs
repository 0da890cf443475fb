//! Machines made ahead of time: most of a fork's cost is KVM's creation of a machine, which needs no caller to wait for it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use minivm_vmm::{Error, Prepared, Result, Snapshot};

/// A pool of machines of one snapshot, made ahead of time by a thread of its own. Each machine is handed out once, and another is
/// made in its place. Dropping the pool ends its thread, and the machines that have not been taken.
///
/// A machine that is ready takes no memory for its guest yet, but a few descriptors and KVM's own memory for it.
///
/// ```no_run
/// use minivm_machine::Pool;
/// use minivm_vmm::{Builder, Snapshot};
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
    /// The number of machines to keep ready.
    size: usize,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    ready: VecDeque<Prepared>,
    /// The error of the last attempt to make a machine, until a call of `take` returns it.
    error: Option<Error>,
    /// Whether the thread waits, after an error, for a call of `take` to succeed: else it would fail again and again.
    resting: bool,
    /// Whether the pool is dropped.
    ended: bool,
}

impl Pool {
    /// Makes a pool that keeps `size` machines ready, and starts its thread, `pool`.
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::check_host`]; [`Error::Host`] where the thread can't be started.
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
            .map_err(|source| Error::Host {
                what: "a thread for a pool of machines".into(),
                source,
            })?;
        Ok(Pool {
            shared,
            maker: Some(maker),
        })
    }

    /// Takes a machine out of the pool: at once where one is ready, or else made in this call.
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::prepare`]. An error of the pool's thread is returned once, by the next call; the thread makes no
    /// more machines until a later call succeeds.
    pub fn take(&self) -> Result<Prepared> {
        // The machines that are ready have the memory file mapped, and would be refused when they wake.
        self.shared.snapshot.check_unchanged()?;
        let taken = match self.shared.next()? {
            Some(ready) => ready,
            None => self.shared.snapshot.prepare()?,
        };
        self.shared.lock().resting = false;
        self.shared.changed.notify_all();
        Ok(taken)
    }

    /// Returns the number of machines that are ready now.
    pub fn ready(&self) -> usize {
        self.shared.lock().ready.len()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        // The thread drops the machines, and the one that it is making now.
        let _ = self.maker.take().map(JoinHandle::join);
    }
}

impl Shared {
    /// Takes a machine that is ready; fails with the thread's error since the last call.
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

    /// Waits until a machine is missing. Returns false when the pool has been dropped.
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

    /// Takes the lock. Code that holds it doesn't panic, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
