//! Random numbers of the host's, which need no file.

use std::io;

/// Fills `bytes`, at most 256 of them: the kernel gives so many at once (getrandom(2)). Waits while the host has just been
/// started, until its numbers are random.
pub(crate) fn fill(bytes: &mut [u8]) -> io::Result<()> {
    loop {
        #[allow(unsafe_code, reason = "std has no interface to it")]
        // SAFETY: the bytes may be written to.
        let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(filled) {
            Ok(len) if len == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}
