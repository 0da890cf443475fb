//! A UART's data port.
//!
//! A whole buffer goes with one string instruction, which KVM ends at each byte (Linux 6.12, `x86_emulate_instruction`). Kernels without
//! `CONFIG_X86_IOPL_IOPERM` don't permit it.

#![allow(
    unsafe_code,
    reason = "port access and its permission have no safe interface"
)]

use std::arch::asm;
use std::io;
use std::marker::PhantomData;

/// The permission to write to a UART's data port, which belongs to one thread.
pub(crate) struct Register {
    port: u16,
    of_thread: PhantomData<*const ()>,
}

impl Register {
    /// Asks the kernel for the permission to write to the data port of COM2 or COM3.
    pub(crate) fn permitted(port: u16) -> Option<Register> {
        // SAFETY: it changes what this thread may access, not what memory holds. The port is that of a UART: nothing
        // that is written to it reaches memory.
        let error = unsafe { libc::ioperm(port.into(), 1, 1) };
        (error == 0).then_some(Register {
            port,
            of_thread: PhantomData,
        })
    }

    /// Gives the permission up, in a process that becomes the command: it would outlive both fork and exec.
    pub(crate) fn forbid(port: u16) -> io::Result<()> {
        // SAFETY: as above.
        match unsafe { libc::ioperm(port.into(), 1, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Writes bytes, in order, each in an exit of its own.
    pub(crate) fn write(&self, bytes: &[u8]) {
        // SAFETY: the port is permitted to this thread, or there were no `self`, which can't leave it. OUTSB reads
        // `bytes.len()` bytes from RSI on, upwards (the ABI has the direction flag clear), and those are the slice's.
        unsafe {
            asm!(
                "rep outsb",
                in("dx") self.port,
                inout("rsi") bytes.as_ptr() => _,
                inout("rcx") bytes.len() => _,
                options(readonly, nostack, preserves_flags),
            );
        }
    }
}
