//! The end of a program in any sandbox, and the exit code that a shell would report for it.

use minivm_guest::channel::{Exit, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::signal::{KILL, PIPE};

/// The exit code of timeout(1) for a program that its time limit ended.
const TIMED_OUT: u8 = 124;
/// The exit code of POSIX's shell for a program that can't be executed.
const NOT_EXECUTABLE: u8 = 126;
/// The exit code of POSIX's shell for a program that isn't there.
const NOT_FOUND: u8 = 127;
/// What shells add to a signal's number to make an exit code of it.
const SIGNAL: u8 = 128;

/// A call that suspended code makes to a function of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The function's name.
    pub function: String,
    /// The positional arguments.
    pub args: Vec<Value>,
    /// The keyword arguments.
    pub kwargs: Map<String, Value>,
}

/// The end of a program.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// The program exited with this code.
    Exited(u8),
    /// This signal ended it, which did not come from the host.
    Signal(u8),
    /// Its time limit ended it.
    TimedOut,
    /// Its memory limit ended it.
    OutOfMemory,
    /// The host stopped it, as if by this signal: by [`Event::Stop`](crate::session::Event::Stop), or by an
    /// [`Event::Signal`](crate::session::Event::Signal) that counts as one.
    Stopped(u8),
    /// An output that has lost its reader ended it.
    OutputClosed,
    /// It never started: the image has no such command. The text is the guest's.
    NotFound(String),
    /// It never started: the command can't be executed. The text is the guest's.
    NotExecutable(String),
    /// It has not ended: the code is suspended at a call of a function of the host's. Any process can resume it from its state.
    Suspended {
        /// The call.
        call: Call,
        /// The code's state.
        state: Vec<u8>,
    },
}

impl End {
    /// Returns the exit code that a shell would report; `None` for suspended code, which has not ended.
    pub fn exit_code(&self) -> Option<u8> {
        Some(match self {
            End::Exited(code) => *code,
            End::Signal(signal) | End::Stopped(signal) => SIGNAL.saturating_add(*signal),
            End::TimedOut => TIMED_OUT,
            End::OutOfMemory => SIGNAL + KILL,
            End::OutputClosed => SIGNAL + PIPE,
            End::NotFound(_) => NOT_FOUND,
            End::NotExecutable(_) => NOT_EXECUTABLE,
            End::Suspended { .. } => return None,
        })
    }
}

impl From<&Exit> for End {
    /// Reads the exit that a guest reports of its command.
    fn from(exit: &Exit) -> End {
        match exit.status {
            Status::Signal(KILL) if exit.out_of_memory => End::OutOfMemory,
            Status::Signal(signal) => End::Signal(signal),
            Status::Code(code) => End::Exited(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minivm_guest::channel::Times;

    #[test]
    fn exit_codes_are_those_that_shells_know() {
        for (end, code) in [
            (End::Exited(42), 42),
            (End::Signal(11), 139),
            (End::Signal(200), 255),
            (End::OutOfMemory, 137),
            (End::NotFound(String::new()), 127),
            (End::NotExecutable(String::new()), 126),
            (End::TimedOut, 124),
            (End::Stopped(2), 130),
            (End::Stopped(15), 143),
            (End::OutputClosed, 141),
        ] {
            assert_eq!(end.exit_code(), Some(code), "{end:?}");
        }
    }

    #[test]
    fn only_an_out_of_memory_kill_is_an_end_by_the_memory_limit() {
        let end = |status, out_of_memory| {
            End::from(&Exit {
                status,
                out_of_memory,
                user_time: 0,
                system_time: 0,
                peak_memory: 0,
                times: Times::default(),
            })
        };
        assert_eq!(end(Status::Signal(9), true), End::OutOfMemory);
        assert_eq!(end(Status::Signal(9), false), End::Signal(9));
        assert_eq!(end(Status::Signal(11), true), End::Signal(11));
        assert_eq!(end(Status::Code(1), true), End::Exited(1));
    }
}
