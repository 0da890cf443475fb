//! Programs that minivm doesn't carry, fetched once and kept in `<cache>/assets`: nothing of the system is changed for them.

pub mod debian;
mod error;

pub use debian::install_runsc;
pub use error::Error;
