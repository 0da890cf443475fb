//! Programs that some sandboxes need and minivm doesn't carry: fetched once, by version and digest, and kept in `<cache>/assets`.
//! Nothing of the system is changed for them.

pub mod debian;
mod error;
pub mod npm;

use minivm_image::publish::{Folder, Lock};

pub use debian::install_runsc;
pub use error::Error;

/// Locks an entry of the cache to make it; where another process is making it, `waiting` is called before this one waits.
fn lock(entry: &Folder, waiting: impl FnOnce()) -> Result<Lock, Error> {
    match entry.try_lock()? {
        Some(lock) => Ok(lock),
        None => {
            waiting();
            Ok(entry.lock()?)
        }
    }
}
