//! A Python that starts before there is anything to run, so that clones of the machine have one that has started.
//!
//! Its program is `interpreter.py`. It has pipes for its streams from the start, and one more socket, over which it gets the code
//! to warm it with and, in a clone, the code to run. Where the request wants another process than this one, the Python is
//! killed, and the command is started as any other.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use minivm_guest::channel::{Interpreter, Refusal, Request};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::command::{self, INHERITED, Running, Streams};
use crate::user::{self, User};
use crate::{Error, cannot};

/// The program, which the code on the interpreter's command line reads.
const PROGRAM: &str = include_str!("interpreter.py");
/// Python's arguments to run code; the code follows.
const ARGUMENTS: [&[u8]; 2] = [b"-u", b"-c"];
/// The beginnings of the names of variables that decide which Python starts, or that it reads when it starts and not again: a
/// request has to have them as they were then.
const READ_AT_START: [&[u8]; 8] = [
    b"PATH=", b"HOME=", b"PYTHON", b"LC_", b"LANG", b"LD_", b"MALLOC_", b"TZ",
];
/// The most bytes of an error that are read.
const ERROR_MAX: u64 = 1000;

/// An interpreter that waits for its code.
pub(crate) struct Waiting {
    running: Running,
    socket: UnixStream,
    /// The request that it was started by.
    own: Request,
    user: User,
}

impl Waiting {
    /// Starts the interpreter, and waits until it has run the code that warms it.
    pub(crate) fn start(interpreter: Interpreter) -> Result<Waiting, Error> {
        let Interpreter { request: own, code } = interpreter;
        let user = user::find(&own.user)?;
        let (mut socket, theirs) = UnixStream::pair()?;
        let mut request = own.clone();
        request.argv.extend(ARGUMENTS.map(<[u8]>::to_vec));
        request.argv.push(first_words().into());
        request.stdin = true;
        let running = command::start(&request, &user, Streams::Pipes, Some(theirs.into()))?;
        socket.write_all(PROGRAM.as_bytes())?;
        socket.write_all(&texts([code.as_bytes()]))?;
        answer(&mut socket)
            .map_err(cannot("warm the interpreter"))?
            .map_err(|error| format!("the code that warms the interpreter failed: {error}"))?;
        Ok(Waiting {
            running,
            socket,
            own,
            user,
        })
    }

    /// Lets the interpreter run the request's code, if it is the process that the request wants and can do so. Otherwise it is
    /// killed, and `None` is returned.
    pub(crate) fn run(
        mut self,
        request: &Request,
        user: &User,
    ) -> Option<Result<Running, Refusal>> {
        let Some(code) = self.code_of(request, user) else {
            self.dismiss();
            return None;
        };
        let folder: &[u8] = match &*request.cwd {
            [] => b"/",
            folder => folder,
        };
        // Made where it isn't there, as for every command.
        if command::working_folder(&request.cwd).is_err() {
            self.dismiss();
            return None;
        }
        // In the order in which `Command` hands them to a program.
        let environment: BTreeMap<_, _> = command::environment(request, user, Streams::Pipes)
            .into_iter()
            .collect();
        let variables = environment.into_iter().map(|(name, value)| {
            let mut entry = name.into_encoded_bytes();
            entry.push(b'=');
            entry.extend(value.into_encoded_bytes());
            entry
        });
        let stdin: &[u8] = if request.stdin { b"1" } else { b"" };
        let mut message = vec![code.to_vec(), folder.to_vec(), stdin.to_vec()];
        message.extend(variables);
        let answered = self
            .socket
            .write_all(&texts(message.iter().map(Vec::as_slice)))
            .and_then(|()| answer(&mut self.socket));
        match answered {
            Ok(Ok(())) => {
                let child = match read_pid(&mut self.socket) {
                    Ok(child) => child,
                    Err(error) => return Some(Err(Refusal::Failed(error.to_string()))),
                };
                reap(self.running.pid);
                self.running.pid = child;
                if !request.stdin {
                    self.running.stdin = None;
                }
                Some(Ok(self.running))
            }
            // It can't enter the folder, or has died. `command::start` then starts the command, or has the error for it.
            _ => {
                self.dismiss();
                None
            }
        }
    }

    /// Returns the code that the request wants to be run, if this interpreter is the one to run it.
    fn code_of<'a>(&self, request: &'a Request, user: &User) -> Option<&'a [u8]> {
        let (program, arguments) = request.argv.split_first()?;
        let (code, arguments) = arguments.split_last()?;
        let own = &self.own;
        let suits = own.argv == [program.as_slice()]
            && arguments == ARGUMENTS
            // Python has an error of its own for other code.
            && std::str::from_utf8(code).is_ok()
            && request.terminal.is_none()
            && request.rlimits.is_empty()
            && request.privileged == own.privileged
            && *user == self.user
            && starting(request) == starting(own);
        suits.then_some(code)
    }

    fn dismiss(self) {
        let pid = self.running.pid;
        // It may have ended by itself; then there is no process to be killed, but one to be waited for.
        let _ = kill_process(pid, Signal::KILL);
        reap(pid);
    }
}

/// Waits for a child that ends.
fn reap(pid: Pid) {
    while let Err(Errno::INTR) = waitpid(Some(pid), WaitOptions::empty()) {}
}

/// Returns the code on its command line, which reads its program. The socket is there under the number that `command` gives it.
fn first_words() -> String {
    format!(
        "import os; exec(compile(os.read({INHERITED}, {}), '<minivm>', 'exec'), {{'__name__': 'minivm'}})",
        PROGRAM.len()
    )
}

/// Returns the variables that count when Python starts.
fn starting(request: &Request) -> Vec<&[u8]> {
    let all = request.env.iter().map(Vec::as_slice);
    all.filter(|entry| READ_AT_START.iter().any(|name| entry.starts_with(name)))
        .collect()
}

/// Encodes texts as a message.
fn texts<'a>(texts: impl IntoIterator<Item = &'a [u8], IntoIter: ExactSizeIterator>) -> Vec<u8> {
    let texts = texts.into_iter();
    let mut message = length(texts.len()).to_vec();
    for text in texts {
        message.extend(length(text.len()));
        message.extend(text);
    }
    message
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length)
        .expect("a message fits a frame")
        .to_le_bytes()
}

/// Reads the number of the process that the code runs in: a child of the one that waited, which ends, so that it becomes a child
/// of this process.
fn read_pid(socket: &mut UnixStream) -> io::Result<Pid> {
    let mut pid = [0; 4];
    socket.read_exact(&mut pid)?;
    Pid::from_raw(i32::from_le_bytes(pid)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Reads the interpreter's answer: success, or the reason for its failure.
fn answer(socket: &mut UnixStream) -> io::Result<Result<(), String>> {
    let mut went_well = [0];
    socket.read_exact(&mut went_well)?;
    if went_well == [1] {
        return Ok(Ok(()));
    }
    let mut error = Vec::new();
    socket.take(ERROR_MAX).read_to_end(&mut error)?;
    Ok(Err(String::from_utf8_lossy(&error).into_owned()))
}
