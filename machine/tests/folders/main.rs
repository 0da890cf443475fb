//! The folder server, by its messages: it does what a real folder does, and lets nothing out, in, or through that it shouldn't.
//!
//! The client here writes requests byte by byte, as a hostile guest can.

// Tests run: here and in labs

#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers here are small"
)]

mod attacks;
mod behaviour;
mod client;
mod growth;
mod malformed;
mod mounted;
mod process;
mod rules;
mod twin;
mod wire;
