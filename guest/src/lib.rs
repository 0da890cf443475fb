//! What a guest is made of.
//!
//! A guest's root file system is an initramfs: a cpio archive that the Linux kernel unpacks into memory before it starts
//! `/init`. [`image`] finds container images and [`rootfs`] makes one file system of their layers; [`newc`] writes archives
//! entry by entry; [`archive_dir`] makes one out of a folder. [`channel`] is what host and guest say to each other.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod channel;
#[cfg(feature = "image")]
pub mod image;
#[cfg(feature = "std")]
pub mod newc;
#[cfg(feature = "image")]
pub mod rootfs;

#[cfg(feature = "std")]
mod walk;

#[cfg(feature = "std")]
pub use walk::{Owner, archive_dir};
