//! What some sandboxes are made of and minivm doesn't carry: fetched once, by version and digest, and kept in `<cache>/assets`.
//! Nothing of the system is changed for it.

pub mod debian;
mod error;
pub mod npm;

pub use debian::install_runsc;
pub use error::Error;
