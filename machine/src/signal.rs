//! The numbers of signals that a session sends, and that ends are made of. They are Linux's on all processors.

/// SIGHUP: the terminal is gone.
pub const HUP: u8 = 1;
/// SIGINT: the user asks for an end by a key.
pub const INT: u8 = 2;
/// SIGQUIT: the user asks for an end by another key.
pub const QUIT: u8 = 3;
/// SIGKILL, which can't be caught, and which a kernel's out-of-memory killer sends.
pub const KILL: u8 = 9;
/// SIGPIPE: the reader of a program's output is gone.
pub const PIPE: u8 = 13;
/// SIGTERM: a program asks for an end.
pub const TERM: u8 = 15;

/// The signals that ask programs to end.
pub(crate) const ENDING: [u8; 4] = [HUP, INT, QUIT, TERM];
