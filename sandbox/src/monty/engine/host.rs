//! What the interpreter needs of its host: functions, outputs, input.

use std::io;

use monty_types::{ExcType, MontyException};
use serde_json::Value;

use crate::Call;

/// What Python says at the input's end.
pub(super) const END_OF_INPUT: &str = "EOF when reading a line";

/// Which of the two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// What the interpreter needs of others. An error of it ends the code.
pub(super) trait Host {
    /// Calls one of the functions. An inner error is the message of an exception.
    fn call(&mut self, call: Call) -> io::Result<Result<Value, String>>;

    /// Takes output.
    fn write(&mut self, to: Stream, text: &str) -> io::Result<()>;

    /// Comes by every few hundred instructions.
    fn poll(&mut self) -> io::Result<()>;

    /// A line of the input with its end, or nothing at the input's.
    fn read_line(&mut self) -> io::Result<String>;
}

pub(super) fn exception(kind: ExcType, message: impl Into<String>) -> MontyException {
    MontyException::new(kind, Some(message.into()))
}
