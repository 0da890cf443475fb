//! The user's terminal as a machine's console: raw while the machine runs, and as it was on every way out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use minivm_guest::channel::Window;
use minivm_machine::streams;
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// The terminal's settings before they were changed.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Ctrl-A: what comes next is for minivm, as in QEMU.
const ESCAPE: u8 = 0x01;

/// A terminal in raw mode, where every key goes to the guest. Dropping it restores the terminal, and so does a panic. Signals that end
/// the process don't: a handler of theirs has to call [`restore`].
pub(super) struct RawMode(());

impl RawMode {
    /// Switches stdin to raw mode if it is a terminal.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let saved = tcgetattr(&stdin)?;
        let mut raw = saved.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        restore_on_panic();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(RawMode(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was, once.
pub(super) fn restore() {
    if let Some(saved) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &saved);
    }
}

fn restore_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        default(info);
    }));
}

/// A pipe with what is typed, less minivm's own keys: Ctrl-A x calls `end`, Ctrl-A Ctrl-A is a Ctrl-A for the guest. What
/// the guest doesn't take is kept while the pipe has room, and lost from then on, so that Ctrl-A x is always heard.
pub(super) fn keys(end: impl FnMut() + Send + 'static) -> io::Result<OwnedFd> {
    let (ours, theirs) = io::pipe()?;
    rustix::io::ioctl_fionbio(&theirs, true)?;
    let mut keys = Keys::new(end);
    std::thread::Builder::new()
        .name("keys".into())
        .spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(len @ 1..) = streams::read(io::stdin(), &mut buffer) {
                let kept = keys.filter(&mut buffer[..len]);
                match rustix::io::write(&theirs, &buffer[..kept]) {
                    Ok(_) | Err(Errno::AGAIN) => {}
                    // The machine has ended.
                    Err(_) => break,
                }
            }
        })?;
    Ok(ours.into())
}

/// Finds minivm's own keys in what is typed.
struct Keys<F> {
    escaped: bool,
    end: F,
}

impl<F: FnMut()> Keys<F> {
    fn new(end: F) -> Self {
        Keys {
            escaped: false,
            end,
        }
    }

    /// Takes minivm's own keys out of `bytes`, and returns how many bytes are left at its start.
    fn filter(&mut self, bytes: &mut [u8]) -> usize {
        let mut kept = 0;
        for index in 0..bytes.len() {
            let key = bytes[index];
            match (self.escaped, key) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x' | b'X') => {
                    self.escaped = false;
                    (self.end)();
                }
                _ => {
                    self.escaped = false;
                    bytes[kept] = key;
                    kept += 1;
                }
            }
        }
        kept
    }
}

/// Ends this process with these lines on stderr, while an output, which can be stderr, still waits for its reader.
pub(super) fn leave(lines: Vec<String>, code: u8) -> ! {
    restore();
    streams::tell_soon(lines);
    std::process::exit(code.into())
}

/// The terminal's size.
pub(super) fn window() -> Window {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    size.map_or(
        Window {
            rows: 24,
            columns: 80,
        },
        |size| Window {
            rows: size.ws_row,
            columns: size.ws_col,
        },
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn filtered(chunks: &[&[u8]]) -> (Vec<u8>, u32) {
        let ends = Cell::new(0);
        let mut keys = Keys::new(|| ends.set(ends.get() + 1));
        let mut out = Vec::new();
        for chunk in chunks {
            let mut bytes = chunk.to_vec();
            let kept = keys.filter(&mut bytes);
            out.extend(&bytes[..kept]);
        }
        (out, ends.get())
    }

    #[test]
    fn only_ctrl_a_x_ends_the_machine() {
        assert_eq!(filtered(&[b"x\x03"]), (b"x\x03".to_vec(), 0));
        assert_eq!(filtered(&[b"a\x01xb"]), (b"ab".to_vec(), 1));
        assert_eq!(filtered(&[b"a\x01", b"x"]), (b"a".to_vec(), 1));
        assert_eq!(filtered(&[b"\x01\x01x"]), (b"\x01x".to_vec(), 0));
        assert_eq!(filtered(&[b"\x01b"]), (b"b".to_vec(), 0));
    }
}
