//! Templates with real kernels: what their clones have in common, what they must not have in common, and what becomes of a
//! template that is damaged, killed while it is made, or removed while it is used.
//!
//! They run where KVM runs kernels, or in the lab. What is about the command is done with the command, the rest with the
//! library, which takes less time.

// Tests run: on real KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod clock;
mod folders;
mod forks;
mod guest;
mod kills;
mod names;
mod pages;
mod quota;
mod same;
mod trace;
mod unnamed;
