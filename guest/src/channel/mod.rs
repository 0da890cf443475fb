//! The channel between host and guest once the guest's init runs: on COM2, and in guest RAM.
//!
//! A byte through a UART costs an exit to the host, and one from it an interrupt: tens of microseconds each where KVM is
//! emulated, one or two on bare metal. So init sets two [`ring`] buffers apart in its RAM, one for each direction, and sends
//! their addresses; from then on all bytes go through them, and a byte on COM2 only means "look" (a doorbell). Where the host
//! can't reach the guest's RAM, or init can't find the addresses of its pages, the bytes go through the UART instead.
//!
//! Either way they are the same bytes: [`frame`]s, each of which is one message ([`ToGuest`], [`ToHost`]).
//!
//! 1. The guest writes [`MAGIC`] and [`ToHost::Hello`] to COM2.
//! 2. The host answers with [`ToGuest::Request`], and with [`ToGuest::Files`] if the request announces files. Or it sends
//!    [`ToGuest::Prepare`] first; the guest then does all that it can without a request and sends [`ToHost::Ready`], at which
//!    point the machine can be saved, and its clones get requests of their own.
//! 3. The guest asks for the time ([`ToHost::Time`]), starts the command and sends [`ToHost::Started`], or sends
//!    [`ToHost::Refused`] with the reason; that is then the last message.
//! 4. Streams, signals and window sizes flow. Input flows only as far as the guest has asked for it ([`ToHost::Room`]), so
//!    that input that the command doesn't read never holds up a signal.
//! 5. The command has ended, and all its output is sent: for each path in [`Request::copy_out`] the guest sends
//!    [`ToHost::FilesOf`] and [`ToHost::Files`]; then [`ToHost::Exit`], and ends the machine.
//!
//! Where [`Request::timeline`] is set, the guest also writes [`MARK`] to COM2 when the request has come and when the command has ended,
//! and sends [`ToHost::Log`] then.
//!
//! The host's folders have rings of their own, and a doorbell of their own, COM3: a thread that waits for a file must not hold up the
//! command's output. See [`folders`].
//!
//! Each side takes the other for hostile: bytes that are no message are an error that ends the conversation, and no received
//! byte decides how much memory is allocated, beyond [`frame::BODY_MAX`].

/// COM2's data register: its I/O port.
#[cfg(target_arch = "x86_64")]
pub const COM2: u16 = 0x2f8;
/// COM2's data register: its address, at the beginning of a page of any size.
#[cfg(target_arch = "aarch64")]
pub const COM2: u64 = 0x0901_0000;

/// COM3's data register, the folders' doorbell: its I/O port.
#[cfg(target_arch = "x86_64")]
pub const COM3: u16 = 0x3e8;
/// COM3's data register, the folders' doorbell: its address, at the beginning of a page of any size.
#[cfg(target_arch = "aarch64")]
pub const COM3: u64 = 0x0902_0000;

/// The doorbell by which init marks its clock: the host sees the exit that it makes, and init knows the time before and after it. As a
/// doorbell it is like any other byte. A kernel's driver writes to the same register before, its divisor of the UART's clock for one, which
/// is another number at any usual speed.
pub const MARK: u8 = 0xa5;

/// The word on the kernel's command line that announces a listening host to init: `rings` follows, or `uart` where all bytes are
/// to go through the UART.
pub const PARAMETER: &str = "minivm.channel=";

/// The name of a file or folder in the archives of [`ToHost::Files`]; a folder's content is below it.
pub const COPIED: &str = "copied";

pub mod folders;
pub mod frame;
mod message;
pub mod ring;

pub use message::{
    Exit, Hello, Interpreter, KernelLog, LOG_MAX, MAGIC, MessageError, Moment, Preparation,
    Refusal, Request, Rlimit, STDIN_WINDOW, SharedFolder, Status, Times, Tmpfs, ToGuest, ToHost,
    VERSION, Window,
};
