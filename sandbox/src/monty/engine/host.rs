//! The interface of the interpreter to its host: functions, outputs, input.

use std::io;

use monty_types::{ExcType, MontyException};
use serde_json::Value;

use crate::Call;

/// Python's message at the end of the input.
pub(super) const END_OF_INPUT: &str = "EOF when reading a line";

/// An output of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// The host of an interpreter. An error of its methods ends the code.
pub(super) trait Host {
    /// Calls one of the task's functions. An inner error is the message of an exception.
    fn call(&mut self, call: Call) -> io::Result<Result<Value, String>>;

    /// Writes output.
    fn write(&mut self, to: Stream, text: &str) -> io::Result<()>;

    /// Handles events and flushes output. The interpreter calls it every few hundred instructions.
    fn poll(&mut self) -> io::Result<()>;

    /// Reads a line of the input with its line end; an empty string is the end of the input.
    fn read_line(&mut self) -> io::Result<String>;
}

pub(super) fn exception(kind: ExcType, message: impl Into<String>) -> MontyException {
    MontyException::new(kind, Some(message.into()))
}
