//! The adapter that passes the interpreter's output to the host.

use std::borrow::Cow;
use std::io;

use monty_types::{ExcType, MontyException, PrintWriter, PrintWriterCallback};

use super::host::{Host, Stream, exception};

/// A writer of the interpreter that writes to the host, and raises an exception at the host's errors.
pub(super) struct Printer<'a> {
    pub(super) host: &'a mut dyn Host,
    /// The host's first error, which ends the code.
    pub(super) error: Option<io::Error>,
}

impl<'a> Printer<'a> {
    pub(super) fn new(host: &'a mut dyn Host) -> Self {
        Printer { host, error: None }
    }

    /// Returns the writer for the interpreter.
    pub(super) fn writer(&mut self) -> PrintWriter<'_> {
        PrintWriter::Callback(self)
    }

    /// Keeps the host's error, and raises an exception. The host isn't called again after an error. Code that catches the exception
    /// doesn't run for long: it is raised again within a few hundred instructions.
    fn check(&mut self, result: io::Result<()>) -> Result<(), MontyException> {
        if let Err(error) = result {
            self.error = Some(error);
        }
        match &self.error {
            None => Ok(()),
            Some(error) => Err(exception(ExcType::KeyboardInterrupt, error.to_string())),
        }
    }
}

impl PrintWriterCallback for Printer<'_> {
    fn stdout_write(&mut self, output: Cow<'_, str>) -> Result<(), MontyException> {
        let result = match self.error {
            None => self.host.write(Stream::Stdout, &output),
            Some(_) => Ok(()),
        };
        self.check(result)
    }

    fn stdout_push(&mut self, end: char) -> Result<(), MontyException> {
        self.stdout_write(Cow::Borrowed(end.encode_utf8(&mut [0; 4])))
    }

    fn poll_flush(&mut self) -> Result<(), MontyException> {
        let result = match self.error {
            None => self.host.poll(),
            Some(_) => Ok(()),
        };
        self.check(result)
    }
}
