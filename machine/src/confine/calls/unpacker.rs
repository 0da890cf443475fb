//! The system calls of an unpacker of files, each with its reason. What is not listed here is answered as a monitor's calls are.

use super::EXECUTABLE;
use crate::filter::Argument::{self, Bits, Int, Register};

/// Calls with any arguments, all on open descriptors.
#[rustfmt::skip]
pub(in super::super) const FILE: &[i64] = &[
    libc::SYS_brk,             // malloc
    libc::SYS_clock_gettime,   // also: time, where the vDSO can't read the host's clock
    libc::SYS_clock_nanosleep, // a rest before a full terminal is tried again
    libc::SYS_close,           // files that are whole, folders that are left
    libc::SYS_exit_group,      // the end of the process; also: a panic
    libc::SYS_fchmod,          // a file's permissions; a folder's
    libc::SYS_futex,           // also: locks
    libc::SYS_getrandom,       // the name of a file that isn't whole; also: seeds of malloc and hash tables
    libc::SYS_madvise,         // also: free
    libc::SYS_mremap,          // realloc of a large block
    libc::SYS_munmap,          // free
    libc::SYS_ppoll,           // whether it is over; whether a pipe takes more
    libc::SYS_read,            // also: the archive
    libc::SYS_recvfrom,        // the archive
    libc::SYS_restart_syscall, // also: the kernel's own, after a wait that SIGSTOP and SIGCONT interrupted
    libc::SYS_sendmsg,         // the report
    libc::SYS_sigaltstack,     // std's handler of stack overflows, at the end
    libc::SYS_write,           // files, stderr
    libc::SYS_writev,          // also: malloc's last words
];

/// Calls with some arguments. Each row is one way to make one.
#[rustfmt::skip]
pub(in super::super) const FILE_CHECKED: &[(i64, &[Argument])] = &[
    // Memory, which is never executable.
    (libc::SYS_mmap, &[Bits { index: 2, mask: EXECUTABLE, value: 0 }]),
    (libc::SYS_mprotect, &[Bits { index: 2, mask: EXECUTABLE, value: 0 }]),
    // std asks whether a descriptor is open before it closes it, in debug builds; copies of descriptors.
    (libc::SYS_fcntl, &[Int(1, libc::F_GETFD.cast_unsigned())]),
    (libc::SYS_fcntl, &[Int(1, libc::F_DUPFD_CLOEXEC.cast_unsigned())]),
    // The report's body, to the connected socket.
    (libc::SYS_sendto, &[Register(4, 0)]),
    // Times of what is open. Landlock doesn't bound those of names.
    (libc::SYS_utimensat, &[Register(1, 0)]),
];

/// Further calls of an unpacker that fills a folder. Landlock bounds all of them but the looks.
#[rustfmt::skip]
pub(in super::super) const FOLDER: &[i64] = &[
    libc::SYS_mkdirat,    // folders
    libc::SYS_newfstatat, // what is there already
    libc::SYS_openat,     // new files; a folder in the one that is open
    libc::SYS_openat2,    // a folder further below, through no link
    libc::SYS_renameat,   // a file that is whole gets its name
    libc::SYS_symlinkat,  // links
    libc::SYS_unlinkat,   // what gives way to a file, a folder or a link; a file that isn't whole
];

/// Further calls where the folder is the root: no name leads out of it.
#[rustfmt::skip]
pub(in super::super) const ROOTED: &[i64] = &[
    libc::SYS_utimensat, // times of links, which can't be opened
];

/// Calls that return EACCES where they are not allowed.
#[rustfmt::skip]
pub(in super::super) const REFUSED: &[i64] = &[
    libc::SYS_fchmodat,  // folders that are closed to their owner, where no capability opens them
    libc::SYS_utimensat,
];
