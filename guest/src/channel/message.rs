//! The messages. Streams are plain bytes; structures are in postcard's format, a compact one of serde's.

use serde::{Deserialize, Serialize};

use super::frame::{self, BodyTooLong};

/// The bytes before the guest's first message on COM2. A kernel's driver may have written others before them, while it probed the
/// UART, which must not be taken for a message.
pub const MAGIC: [u8; 8] = *b"\x00minivm\x01";

/// The version of these messages, which has to be equal on both sides.
pub const VERSION: u16 = 6;

/// The most input that the host may send before it is asked for more, in bytes.
pub const STDIN_WINDOW: u32 = 256 << 10;

/// The most bytes of [`KernelLog::records`] that init sends: the kernel's buffer in most configurations.
pub const LOG_MAX: usize = 256 << 10;

/// A message to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToGuest<'a> {
    /// The preparation for a request that comes later, maybe in a clone of this machine. If sent, it is the first message.
    Prepare(Preparation),
    /// The request. The first message, or the first after [`ToHost::Ready`].
    Request(Request),
    /// Input for the command; no bytes are its end.
    Stdin(&'a [u8]),
    /// A signal for the command, by its number on Linux.
    Signal(u8),
    /// The terminal's new size.
    Window(Window),
    /// A piece of a cpio archive of files for the guest; no bytes are its end.
    Files(&'a [u8]),
    /// The wall clock, in nanoseconds since 1970: the answer to [`ToHost::Time`].
    Time(u64),
}

/// A message to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToHost<'a> {
    /// The greeting of a running init. The first message.
    Hello(Hello),
    /// The end of the preparation: all is done that can be done before the request. The machine can be saved now.
    Ready,
    /// The question for the time. It comes between the request, with its files, and the command's start, one at a time: a busy
    /// host may delay a request by any time, and only the guest, which asks, knows how long the answer took.
    Time,
    /// The command runs.
    Started,
    /// The command can't be run. The last message.
    Refused(Refusal),
    /// The number of bytes of input that the host may send beyond those before.
    Room(u32),
    /// The command's standard output.
    Stdout(&'a [u8]),
    /// The command's standard error.
    Stderr(&'a [u8]),
    /// The files of the path with this number in [`Request::copy_out`] follow; a text is the reason why there are none.
    FilesOf(u32, Option<String>),
    /// A piece of a cpio archive of files from the guest; no bytes are its end.
    Files(&'a [u8]),
    /// A warning for the user, in a line.
    Warning(String),
    /// The clock's marks and the kernel's log, where [`Request::timeline`] asks for them: once, when the command has ended.
    Log(KernelLog),
    /// The command has ended. The last message.
    Exit(Exit),
}

/// The greeting of the guest's init.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u16,
    /// The guest-physical address of the [`ring`](super::ring) directory; `None` where the UART has to carry everything.
    pub rings: Option<u64>,
}

/// The command to run, and its surroundings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The command: the program, looked up in the `PATH` of `env` if it has no slash, and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// Its environment, `NAME=value` each. Init adds `HOME`, `HOSTNAME`, `PATH` and, with a terminal, `TERM` where they are
    /// missing.
    pub env: Vec<Vec<u8>>,
    /// Its working folder, made where it doesn't exist.
    pub cwd: Vec<u8>,
    /// Its user, as container images have it: `USER[:GROUP]`, names or numbers; empty means root.
    pub user: String,
    /// The machine's name.
    pub hostname: String,
    /// The size of the terminal that the command gets; without one its streams are pipes.
    pub terminal: Option<Window>,
    /// Whether input comes. If not, the command's stdin is empty.
    pub stdin: bool,
    /// Whether the root file system is read-only to the command.
    pub read_only: bool,
    /// Whether the command may gain privileges, by set-user-ID programs and file capabilities. Root has all capabilities anyway.
    pub privileged: bool,
    /// Resource limits to set.
    pub rlimits: Vec<Rlimit>,
    /// The most bytes in `/dev/shm`; `None` for init's own number.
    pub shm_size: Option<u64>,
    /// Further file systems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Folders of the host's. Each one's number is its place in this list.
    pub folders: Vec<SharedFolder>,
    /// Whether an archive of files follows the request.
    pub copy_in: bool,
    /// Absolute paths of the files and folders that the host wants after the command's end.
    pub copy_out: Vec<Vec<u8>>,
    /// Whether the host draws a timeline: then init marks its clock on COM2 and sends [`ToHost::Log`].
    pub timeline: bool,
    /// The wall clock, in nanoseconds since 1970, when this was sent. See [`ToHost::Time`].
    pub now: u64,
    /// Random bytes that no other machine gets: clones of one machine differ by them.
    pub entropy: [u8; 32],
}

/// The work that can be done before a request comes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preparation {
    /// The wall clock, in nanoseconds since 1970.
    pub now: u64,
    /// The Python to start, which then waits for its code.
    pub interpreter: Option<Interpreter>,
}

/// A Python that has started before it has anything to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    /// Its user, environment and working folder, and the program in `argv`.
    pub request: Request,
    /// Python code that it runs first, such as imports. Names that the code defines stay.
    pub code: String,
}

/// A resource limit, as `setrlimit(2)` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The resource: Linux's `RLIMIT_…` number.
    pub resource: u32,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

/// A file system in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// The mount point: an absolute path, made where it doesn't exist.
    pub path: Vec<u8>,
    /// The flags for mount(2): Linux's `MS_…`.
    pub flags: u32,
    /// Options of its own (tmpfs(5)), separated by commas.
    pub options: String,
}

/// A folder of the host's, or a single file, which the guest mounts with FUSE: see [`folders`](super::folders).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedFolder {
    /// The mount point: an absolute path, made where it doesn't exist.
    pub at: Vec<u8>,
    /// Whether the guest may change nothing in it.
    pub read_only: bool,
    /// Whether it is a single file.
    pub is_file: bool,
}

/// A terminal's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// The reason why the command didn't run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{0}")]
pub enum Refusal {
    /// There is no such program.
    NotFound(String),
    /// The program can't be executed.
    NotExecutable(String),
    /// Another part of the request can't be done.
    Failed(String),
}

/// The command's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code or the signal.
    pub status: Status,
    /// Whether the kernel killed the command, or one of its processes, for want of memory.
    pub out_of_memory: bool,
    /// User time of the command and of the children it waited for, in microseconds.
    pub user_time: u64,
    /// System time of the command and of the children it waited for, in microseconds.
    pub system_time: u64,
    /// The most memory that the command and its children had at one time, in bytes; where the guest's kernel has no cgroups,
    /// the largest resident set of one of them.
    pub peak_memory: u64,
    /// The times of the steps.
    pub times: Times,
}

/// An exit code or a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// The command returned this code.
    Code(u8),
    /// The signal with this number killed it.
    Signal(u8),
}

/// The times of a run's steps in the guest, in nanoseconds since its kernel started its clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// The start of init.
    pub init: u64,
    /// The sending of [`ToHost::Hello`].
    pub hello: u64,
    /// The arrival of the request.
    pub request: u64,
    /// The last moment before the command was executed.
    pub exec: u64,
    /// The end of the command.
    pub exit: u64,
}

/// The guest's part of a timeline: what the host needs to read the guest's clocks, and the kernel's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelLog {
    /// The times of the two bytes [`MARK`](super::MARK) on COM2: when the request had come, and when the command had ended. `None` where
    /// init can't write them, because frames go through COM2, or because the kernel's driver would write them later.
    pub marks: Option<[Moment; 2]>,
    /// A line that init has written to the log: its time in the log, in microseconds, and the time of the writing. `None` where there is
    /// no log, or where the machine comes from a template, whose boot was another run's.
    pub line: Option<(u64, Moment)>,
    /// The log's records as `/dev/kmsg` has them (the kernel's `Documentation/ABI/testing/dev-kmsg`), from the oldest on; at most
    /// [`LOG_MAX`] bytes.
    pub records: Vec<u8>,
    /// The time when all of this had been gathered.
    pub gathered: u64,
}

/// A moment within the time of a call, on the clock of [`Times`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The time just before the call.
    pub before: u64,
    /// The time just after the call.
    pub after: u64,
}

/// The error of a frame that is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// No message has this tag.
    #[error("a message of the unknown kind {0:#04x}")]
    Tag(u8),
    /// The body doesn't have the format that its tag promises.
    #[error("a message of kind {0:#04x} that cannot be understood")]
    Body(u8),
}

const REQUEST: u8 = 0x01;
const STDIN: u8 = 0x02;
const SIGNAL: u8 = 0x03;
const WINDOW: u8 = 0x04;
const FILES_IN: u8 = 0x05;
const PREPARE: u8 = 0x06;
const TIME: u8 = 0x07;

const HELLO: u8 = 0x81;
const STARTED: u8 = 0x82;
const REFUSED: u8 = 0x83;
const ROOM: u8 = 0x84;
const STDOUT: u8 = 0x85;
const STDERR: u8 = 0x86;
const FILES_OF: u8 = 0x87;
const FILES_OUT: u8 = 0x88;
const WARNING: u8 = 0x89;
const EXIT: u8 = 0x8a;
const READY: u8 = 0x8b;
const ASK_TIME: u8 = 0x8c;
const LOG: u8 = 0x8d;

impl Request {
    /// Checks that the request fits a message, at any time of sending: the texts of images and users in it have no limit.
    ///
    /// # Errors
    ///
    /// [`BodyTooLong`] with its length.
    pub fn check(&self) -> Result<(), BodyTooLong> {
        let latest = Request {
            now: u64::MAX,
            ..self.clone()
        };
        let body = serialized(&latest);
        frame::try_encode(REQUEST, &mut Vec::new(), |out| out.extend_from_slice(&body))
    }
}

impl<'a> ToGuest<'a> {
    /// Appends the message to `out` as a frame.
    ///
    /// # Panics
    ///
    /// Where its body is longer than [`BODY_MAX`](frame::BODY_MAX); see [`Request::check`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            ToGuest::Prepare(preparation) => structure(PREPARE, preparation, out),
            ToGuest::Request(request) => structure(REQUEST, request, out),
            ToGuest::Stdin(bytes) => plain(STDIN, bytes, out),
            ToGuest::Signal(number) => plain(SIGNAL, &[*number], out),
            ToGuest::Window(window) => structure(WINDOW, window, out),
            ToGuest::Files(bytes) => plain(FILES_IN, bytes, out),
            ToGuest::Time(now) => plain(TIME, &now.to_le_bytes(), out),
        }
    }

    /// Decodes the message in a frame.
    ///
    /// # Errors
    ///
    /// [`MessageError`] where the frame is no message to the guest.
    pub fn decode(tag: u8, body: &'a [u8]) -> Result<Self, MessageError> {
        Ok(match tag {
            PREPARE => ToGuest::Prepare(parsed(tag, body)?),
            REQUEST => ToGuest::Request(parsed(tag, body)?),
            STDIN => ToGuest::Stdin(body),
            SIGNAL => match body {
                &[number] => ToGuest::Signal(number),
                _ => return Err(MessageError::Body(tag)),
            },
            WINDOW => ToGuest::Window(parsed(tag, body)?),
            FILES_IN => ToGuest::Files(body),
            TIME => {
                let now = body.try_into().map_err(|_| MessageError::Body(tag))?;
                ToGuest::Time(u64::from_le_bytes(now))
            }
            _ => return Err(MessageError::Tag(tag)),
        })
    }
}

impl<'a> ToHost<'a> {
    /// Appends the message to `out` as a frame.
    ///
    /// # Panics
    ///
    /// Where its body is longer than [`BODY_MAX`](frame::BODY_MAX).
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            ToHost::Hello(hello) => structure(HELLO, hello, out),
            ToHost::Ready => plain(READY, &[], out),
            ToHost::Time => plain(ASK_TIME, &[], out),
            ToHost::Started => plain(STARTED, &[], out),
            ToHost::Refused(refusal) => structure(REFUSED, refusal, out),
            ToHost::Room(bytes) => plain(ROOM, &bytes.to_le_bytes(), out),
            ToHost::Stdout(bytes) => plain(STDOUT, bytes, out),
            ToHost::Stderr(bytes) => plain(STDERR, bytes, out),
            ToHost::FilesOf(number, why) => structure(FILES_OF, &(number, why), out),
            ToHost::Files(bytes) => plain(FILES_OUT, bytes, out),
            ToHost::Warning(text) => structure(WARNING, text, out),
            ToHost::Log(log) => structure(LOG, log, out),
            ToHost::Exit(exit) => structure(EXIT, exit, out),
        }
    }

    /// Decodes the message in a frame.
    ///
    /// # Errors
    ///
    /// [`MessageError`] where the frame is no message to the host.
    pub fn decode(tag: u8, body: &'a [u8]) -> Result<Self, MessageError> {
        Ok(match tag {
            HELLO => ToHost::Hello(parsed(tag, body)?),
            READY => ToHost::Ready,
            ASK_TIME => ToHost::Time,
            STARTED => ToHost::Started,
            REFUSED => ToHost::Refused(parsed(tag, body)?),
            ROOM => {
                let bytes = body.try_into().map_err(|_| MessageError::Body(tag))?;
                ToHost::Room(u32::from_le_bytes(bytes))
            }
            STDOUT => ToHost::Stdout(body),
            STDERR => ToHost::Stderr(body),
            FILES_OF => {
                let (number, why) = parsed(tag, body)?;
                ToHost::FilesOf(number, why)
            }
            FILES_OUT => ToHost::Files(body),
            WARNING => ToHost::Warning(parsed(tag, body)?),
            LOG => ToHost::Log(parsed(tag, body)?),
            EXIT => ToHost::Exit(parsed(tag, body)?),
            _ => return Err(MessageError::Tag(tag)),
        })
    }
}

fn plain(tag: u8, body: &[u8], out: &mut Vec<u8>) {
    frame::encode(tag, out, |out| out.extend_from_slice(body));
}

fn structure(tag: u8, body: &impl Serialize, out: &mut Vec<u8>) {
    plain(tag, &serialized(body), out);
}

fn serialized(body: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(body).expect("plain data in growing memory can be written")
}

/// Decodes a structure, with nothing behind it.
fn parsed<'a, T: Deserialize<'a>>(tag: u8, body: &'a [u8]) -> Result<T, MessageError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(MessageError::Body(tag)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::frame::Decoder;
    use proptest::prelude::*;

    fn to_host(message: &ToHost) {
        let (mut wire, mut decoder) = (Vec::new(), Decoder::default());
        message.encode(&mut wire);
        decoder.extend(&wire);
        let (tag, body) = decoder.next().unwrap().unwrap();
        assert_eq!(&ToHost::decode(tag, body).unwrap(), message);
        assert_eq!(
            ToGuest::decode(tag, body),
            Err(MessageError::Tag(tag)),
            "messages have one direction"
        );
    }

    fn to_guest(message: &ToGuest) {
        let (mut wire, mut decoder) = (Vec::new(), Decoder::default());
        message.encode(&mut wire);
        decoder.extend(&wire);
        let (tag, body) = decoder.next().unwrap().unwrap();
        assert_eq!(&ToGuest::decode(tag, body).unwrap(), message);
        assert_eq!(
            ToHost::decode(tag, body),
            Err(MessageError::Tag(tag)),
            "messages have one direction"
        );
    }

    #[test]
    fn messages_to_the_host_come_out_as_they_went_in() {
        let exit = Exit {
            status: Status::Signal(9),
            out_of_memory: true,
            user_time: 1,
            system_time: u64::MAX,
            peak_memory: 3,
            times: Times {
                init: 1,
                hello: 2,
                request: 3,
                exec: 4,
                exit: 5,
            },
        };
        for message in [
            ToHost::Hello(Hello {
                version: VERSION,
                rings: Some(0x12_3000),
            }),
            ToHost::Ready,
            ToHost::Time,
            ToHost::Started,
            ToHost::Refused(Refusal::NotFound("x".into())),
            ToHost::Room(0xdead_beef),
            ToHost::Stdout(b"out"),
            ToHost::Stderr(b""),
            ToHost::FilesOf(3, Some("no such file".into())),
            ToHost::Files(&[0; 1000]),
            ToHost::Warning("careful".into()),
            ToHost::Log(KernelLog {
                marks: Some([Moment::default(); 2]),
                line: Some((
                    u64::MAX,
                    Moment {
                        before: 1,
                        after: 2,
                    },
                )),
                records: vec![0xff; LOG_MAX],
                gathered: 3,
            }),
            ToHost::Exit(exit),
        ] {
            to_host(&message);
        }
    }

    #[test]
    fn messages_to_the_guest_come_out_as_they_went_in() {
        let request = Request {
            argv: vec![b"/bin/sh".to_vec(), vec![0xff, b'\n']],
            env: vec![b"A=b".to_vec()],
            cwd: b"/".to_vec(),
            user: "1000:users".into(),
            terminal: Some(Window {
                rows: 24,
                columns: 80,
            }),
            rlimits: vec![Rlimit {
                resource: 7,
                soft: 1,
                hard: u64::MAX,
            }],
            ..Request::default()
        };
        let interpreter = Interpreter {
            request: request.clone(),
            code: "import json".into(),
        };
        for message in [
            ToGuest::Prepare(Preparation {
                now: 1,
                interpreter: Some(interpreter),
            }),
            ToGuest::Request(request),
            ToGuest::Stdin(b"in"),
            ToGuest::Signal(15),
            ToGuest::Window(Window {
                rows: 1,
                columns: 2,
            }),
            ToGuest::Files(b""),
            ToGuest::Time(1 << 60),
        ] {
            to_guest(&message);
        }
    }

    #[test]
    fn a_body_with_too_much_or_too_little_is_refused() {
        for (tag, body) in [
            (ROOM, &[1, 2, 3][..]),
            (HELLO, &[]),
            (EXIT, &[0xff; 20]),
            (FILES_OF, &[1, 0, 0]),
        ] {
            assert_eq!(ToHost::decode(tag, body), Err(MessageError::Body(tag)));
        }
        for (tag, body) in [(SIGNAL, &[1, 2][..]), (TIME, &[0; 7])] {
            assert_eq!(ToGuest::decode(tag, body), Err(MessageError::Body(tag)));
        }
    }

    proptest! {
        #[test]
        fn no_frame_panics(tag: u8, body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = ToHost::decode(tag, &body);
            let _ = ToGuest::decode(tag, &body);
        }
    }
}
