//! The system calls of a process that serves folders, each with its reason, beside those of [`THREAD`](super::THREAD). What is not listed
//! here is answered as a monitor's calls are.
//!
//! They are those that a server makes for a guest that asks for everything, seen with strace. Its names lead into its folders alone, where
//! these are mounts of their own; elsewhere Landlock bounds what reads or changes files, but not looks, permissions and times.

use super::{FORBIDDEN_FLAGS, THREAD_FLAG};
use crate::filter::Argument::{self, Bits, Int, Register};

/// Calls with any arguments.
#[rustfmt::skip]
pub(in super::super) const CALLS: &[i64] = &[
    libc::SYS_exit_group,      // the end of the process; also: a panic
    libc::SYS_faccessat2,      // ACCESS
    libc::SYS_fallocate,       // FALLOCATE
    libc::SYS_fchmodat,        // SETATTR, and the permissions of what is made
    libc::SYS_fdatasync,       // FSYNC
    libc::SYS_fstatfs,         // STATFS
    libc::SYS_fsync,           // FSYNC, FSYNCDIR
    libc::SYS_ftruncate,       // SETATTR
    libc::SYS_getdents64,      // READDIR, READDIRPLUS
    libc::SYS_linkat,          // LINK
    libc::SYS_lseek,           // LSEEK, and offsets of folders
    libc::SYS_mkdirat,         // MKDIR
    libc::SYS_openat,          // OPEN, OPENDIR: a file that was found, by its number
    libc::SYS_openat2,         // each step to a name; CREATE, MKNOD
    libc::SYS_pread64,         // READ
    libc::SYS_pwritev2,        // WRITE
    libc::SYS_read,            // the settings of a repository
    libc::SYS_readlinkat,      // READLINK
    libc::SYS_recvfrom,        // requests
    libc::SYS_recvmsg,         // the end of the parent's socket
    libc::SYS_renameat2,       // RENAME, RENAME2
    libc::SYS_rseq,            // the start of a thread
    libc::SYS_rt_sigaction,    // also: the start of a thread
    libc::SYS_sendmsg,         // that it is ready; the report
    libc::SYS_set_robust_list, // the start of a thread
    libc::SYS_shutdown,        // also: the end of the requests, where the other process has not ended this one by then
    libc::SYS_statx,           // what a name has led to
    libc::SYS_symlinkat,       // SYMLINK
    libc::SYS_unlinkat,        // UNLINK, RMDIR
    libc::SYS_utimensat,       // SETATTR
];

/// Calls with some arguments. Each row is one way to make one.
#[rustfmt::skip]
pub(in super::super) const CHECKED: &[(i64, &[Argument])] = &[
    // New threads, and nothing else that `clone` makes.
    (libc::SYS_clone, &[Bits { index: 0, mask: THREAD_FLAG | FORBIDDEN_FLAGS, value: THREAD_FLAG }]),
    // The names of threads.
    (libc::SYS_prctl, &[Int(0, libc::PR_SET_NAME.cast_unsigned())]),
    // Replies, and messages to the parent. The sockets are connected; no address means that no other process can be named.
    (libc::SYS_sendto, &[Register(4, 0)]),
];
