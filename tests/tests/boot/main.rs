//! Real kernels, booted, saved and restored.
//!
//! They run where KVM runs kernels, or in the lab, which is some thirty times slower. `cargo xtask test` names the files in
//! the environment.

// Tests run: on real KVM

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod guest;
mod kernels;
mod restore;
mod snapshot;
