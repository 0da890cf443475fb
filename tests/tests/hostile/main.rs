//! What minivm is given and can't trust: kernels' files, layers, archives, documents, registries' answers, messages.

// Tests run: here

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod inputs;
mod kernels;
mod seeds;
