//! Warnings of a run, one line each for the user.

use std::{fmt, io};

use serde::{Serialize, Serializer};

/// A warning for the user. Its text is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Output was dropped at a time limit or a stop, because its reader was too slow.
    NotTaken,
    /// Messages of the command were dropped because writing them failed, for this reason.
    NotWritten(String),
    /// Anything else.
    Other(String),
}

impl Warning {
    /// Makes the warning about messages that could not be written.
    pub fn not_written(error: &io::Error) -> Warning {
        Warning::NotWritten(error.to_string())
    }

    /// Returns whether output was dropped, for another reason than a limit on its size.
    pub fn is_loss(&self) -> bool {
        match self {
            Warning::NotTaken | Warning::NotWritten(_) => true,
            Warning::Other(_) => false,
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::NotTaken => {
                formatter.write_str("output was dropped: its reader had not taken it by the end")
            }
            Warning::NotWritten(why) => {
                write!(formatter, "cannot write the command's stderr: {why}")
            }
            Warning::Other(text) => formatter.write_str(text),
        }
    }
}

impl Serialize for Warning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
