//! The system calls of a fetcher, each with its reason, beside those of [`THREAD`](super::THREAD): files, whose names Landlock bounds,
//! and sockets.
//!
//! They are those that fetchers make, seen with strace: images of every kind, opened, built, and laid out as folders. A row that says
//! *also* is there for what a fetcher on another host or of another C library makes.

use super::{FORBIDDEN_FLAGS, THREAD_FLAG};
use crate::filter::Argument::{self, Bits, Int, Register};

/// Calls with any arguments.
#[rustfmt::skip]
pub(in super::super) const CALLS: &[i64] = &[
    libc::SYS_copy_file_range, // an archive that is kept
    libc::SYS_exit_group,      // the end of the process; also: a panic
    libc::SYS_fchmod,          // folders and files of a root
    libc::SYS_fchmodat,        // folders of a root that can't be read
    libc::SYS_fdatasync,       // entries of the cache
    libc::SYS_flock,           // the same: their locks
    libc::SYS_fstat,           // also: lengths and identities of files
    libc::SYS_ftruncate,       // entries of the cache that are begun anew, the ends of EROFS images
    libc::SYS_getcwd,          // paths that aren't absolute
    libc::SYS_getdents64,      // folders of an image, and roots that are removed
    libc::SYS_geteuid,         // whether an entry of the cache is this user's
    libc::SYS_lgetxattr,       // attributes of files in a folder
    libc::SYS_linkat,          // hard links of a root, entries of the cache
    libc::SYS_llistxattr,      // attributes of files in a folder
    libc::SYS_lseek,           // archives, holes of files in a folder
    libc::SYS_mkdirat,         // folders of a root
    libc::SYS_newfstatat,      // stat, fstat
    libc::SYS_openat,
    libc::SYS_openat2,         // files below a root
    libc::SYS_pipe2,           // an image's archive on its way to its root
    libc::SYS_pread64,         // archives and layers, data that move within an EROFS image
    libc::SYS_pwrite64,        // the size of a root, EROFS images
    libc::SYS_read,
    libc::SYS_readlinkat,      // links of a folder
    libc::SYS_recvfrom,        // orders from the broker, answers of servers
    libc::SYS_recvmsg,         // orders from the broker, with descriptors
    libc::SYS_renameat,        // entries of the cache
    libc::SYS_rseq,            // the start of a thread
    libc::SYS_rt_sigaction,    // also: the start of a thread
    libc::SYS_sendmsg,         // reports to the broker
    libc::SYS_set_robust_list, // the start of a thread
    libc::SYS_statx,           // std's stat
    libc::SYS_symlinkat,       // links of a root
    libc::SYS_syncfs,          // a root that is whole
    libc::SYS_unlinkat,        // entries and roots that are removed
    libc::SYS_utimensat,       // times of a root's files, and of an entry's last use
];

/// Calls with some arguments. Each row is one way to make one.
#[rustfmt::skip]
pub(in super::super) const CHECKED: &[(i64, &[Argument])] = &[
    // New threads, and nothing else that `clone` makes.
    (libc::SYS_clone, &[Bits { index: 0, mask: THREAD_FLAG | FORBIDDEN_FLAGS, value: THREAD_FLAG }]),
    // The names of threads.
    (libc::SYS_prctl, &[Int(0, libc::PR_SET_NAME.cast_unsigned())]),
    // Messages to the broker. The socket is connected; no address means that no other process can be named.
    (libc::SYS_sendto, &[Register(4, 0)]),
    // Copies of descriptors, as `try_clone` makes them, and the flags of open files.
    (libc::SYS_fcntl, &[Int(1, libc::F_DUPFD_CLOEXEC.cast_unsigned())]),
    (libc::SYS_fcntl, &[Int(1, libc::F_GETFL.cast_unsigned())]),
];

/// Calls by which a registry is reached.
#[rustfmt::skip]
pub(in super::super) const NETWORK: &[i64] = &[
    libc::SYS_bind,          // the resolver's UDP sockets
    libc::SYS_connect,       // registries, token servers, proxies
    libc::SYS_epoll_create1, // the event loop of requests
    libc::SYS_epoll_ctl,     // the same: its sources
    libc::SYS_epoll_pwait,   // the same: its wait, on arm64; on x86-64 another C library's
    libc::SYS_eventfd2,      // the same: its end
    libc::SYS_getpeername,   // a server's address
    libc::SYS_getsockname,   // also: the own one
    libc::SYS_getsockopt,    // whether a connection was made
    libc::SYS_sendto,        // requests to name servers
    libc::SYS_setsockopt,    // a connection's delay and its keep-alive
    libc::SYS_shutdown,      // also: the end of a connection with TLS
];

/// The same, with some arguments: sockets of the Internet's families. Engines, agents and desktops listen at Unix sockets.
#[rustfmt::skip]
pub(in super::super) const NETWORK_CHECKED: &[(i64, &[Argument])] = &[
    // Sockets that don't wait.
    (libc::SYS_fcntl, &[Int(1, libc::F_SETFL.cast_unsigned())]),
    (libc::SYS_socket, &[Int(0, libc::AF_INET.cast_unsigned())]),
    (libc::SYS_socket, &[Int(0, libc::AF_INET6.cast_unsigned())]),
    // The event loop's pair, by which it hears of signals where its crate is built with them.
    (libc::SYS_socketpair, &[Int(0, libc::AF_UNIX.cast_unsigned())]),
];
