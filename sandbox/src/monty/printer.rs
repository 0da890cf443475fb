//! The interpreter's output, on its way to the host.

use std::borrow::Cow;
use std::io;

use monty_types::{ExcType, MontyException, PrintWriter, PrintWriterCallback};

use super::host::{Host, Stream, exception};

/// Passes on what is printed, and what the host says while code runs.
pub(super) struct Printer<'a> {
    pub(super) host: &'a mut dyn Host,
    /// The host's error, for which the code is ended.
    pub(super) error: Option<io::Error>,
}

impl<'a> Printer<'a> {
    pub(super) fn new(host: &'a mut dyn Host) -> Self {
        Printer { host, error: None }
    }

    /// What the interpreter takes.
    pub(super) fn writer(&mut self) -> PrintWriter<'_> {
        PrintWriter::Callback(self)
    }

    /// A host that has failed once is not asked again, and whatever the code makes of the exception, it doesn't go on for long:
    /// the next few hundred instructions raise it anew.
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
