//! What a guest is made of.
//!
//! A guest's root file system is an initramfs: a cpio archive that the Linux kernel unpacks into memory before it starts its
//! first process. [`newc`] writes archives entry by entry and [`unpack`] reads them; [`archive_dir`] makes one out of a folder.
//! [`manifest`] is what an archive tells the guest's init, and [`channel`] is what host and guest say to each other.
//!
//! The init itself is the program `minivm-init` beside this library.

pub mod channel;
pub mod contained;
pub mod inherited;
pub mod manifest;
pub mod newc;
pub mod pid1;
pub mod unpack;
pub mod walk;

pub use walk::{FILE_MAX, Nodes, Owner, append_path, archive_dir};
