//! `minivm run`, from outside: real images, real kernels, and what a user sees of them.
//!
//! They run where KVM runs kernels, or in the lab. `cargo xtask test` names the files in the environment. A boot takes about
//! a second there, so what is cheap to check is checked together, by a script in one guest.

// Tests run: on real KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod ends;
mod files;
mod folders;
mod guest;
mod image;
#[cfg(target_arch = "x86_64")]
mod mapped;
mod report;
mod request;
mod signals;
mod streams;
mod surroundings;
mod terminal;
