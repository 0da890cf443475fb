//! A UART's registers in memory, mapped through `/dev/mem` (mem(4)).
//!
//! Kernels with `CONFIG_IO_STRICT_DEVMEM`, which Debian's have, don't permit it while a driver has claimed the registers, unless
//! `iomem=relaxed` is on their command line (`Documentation/admin-guide/kernel-parameters.txt`), where minivm puts it.

#![allow(
    unsafe_code,
    reason = "memory that is a device's has no safe interface"
)]

use std::arch::asm;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

/// All physical addresses, as a file.
const MEM: &str = "/dev/mem";

/// The page with a UART's registers, in this process's memory. `exec` ends it.
pub(crate) struct Register(*mut u8);

impl Register {
    /// Maps the page at this address, which is that of COM2 or COM3, where the kernel permits it.
    pub(crate) fn permitted(page: u64) -> Option<Register> {
        let mem = File::options().read(true).write(true).open(MEM).ok()?;
        let offset = libc::off_t::try_from(page).ok()?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists. One of an address without RAM is
        // never cached (the kernel's `phys_mem_access_prot`).
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                1,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                mem.as_raw_fd(),
                offset,
            )
        };
        (page != libc::MAP_FAILED).then_some(Register(page.cast()))
    }

    /// Gives the permission up, in a process that becomes the command: here `exec` does.
    pub(crate) fn forbid(_: u64) -> io::Result<()> {
        Ok(())
    }

    /// Writes bytes, in order, each in an exit of its own.
    pub(crate) fn write(&self, bytes: &[u8]) {
        for byte in bytes {
            // An instruction of its own, for KVM can read no other form of it (the manual's section 5, `KVM_EXIT_ARM_NISV`): the
            // compiler might choose one that moves the pointer on.
            // SAFETY: the page is mapped as long as this process lives, and the byte goes to a UART, not to memory.
            unsafe {
                asm!(
                    "strb {byte:w}, [{register}]",
                    byte = in(reg) *byte,
                    register = in(reg) self.0,
                    options(nostack, preserves_flags),
                );
            }
        }
    }
}
