//! What a guest is made of.
//!
//! A guest's root file system is an initramfs: a cpio archive that the Linux kernel unpacks into memory before it starts
//! `/init`. [`newc`] writes such archives entry by entry; [`archive_dir`] makes one out of a folder.

pub mod newc;

mod walk;

pub use walk::{Owner, archive_dir};
