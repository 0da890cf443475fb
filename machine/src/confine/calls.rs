//! The system calls of a monitor, each with its reason: all that the process may make, and the fewer that a vCPU's thread may. Those of a
//! fetcher, of a process that serves folders and of an unpacker are in `fetcher`, `folders` and `unpacker`.
//!
//! They are those that runs make, seen with strace: boots, sessions, input, snapshots, clones, stops (`cli/tests/filters` compares). What a
//! row says behind *also* is what a run on another host or of another C library makes, or one that goes wrong; a row that begins with it is
//! there for nothing else. What only one architecture has, KVM's requests above all, is in its own file.

#[cfg_attr(target_arch = "aarch64", path = "calls/aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "calls/x86_64.rs")]
pub(super) mod arch;
pub(super) mod fetcher;
pub(super) mod folders;
pub(super) mod unpacker;

use kvm_bindings::{
    KVMIO, kvm_enable_cap, kvm_mp_state, kvm_userspace_memory_region, kvm_vcpu_events,
};
use rustix::ioctl::Opcode;
use rustix::ioctl::opcode::{none, read, write};

use crate::filter::Argument::{self, Bits, Int, Register};

/// KVM's group of requests.
#[allow(clippy::cast_possible_truncation, reason = "it is 0xae")]
const KVM: u8 = KVMIO as u8;

/// Calls that each thread of the monitor, of a fetcher and of a process that serves folders may make, with any arguments.
#[rustfmt::skip]
pub(super) const THREAD: &[i64] = &[
    libc::SYS_brk,               // also: malloc, on the first thread
    libc::SYS_clock_gettime,     // also: time, where the vDSO can't read the host's clock
    libc::SYS_clock_nanosleep,   // also: a rest for a guest that locks the bus
    libc::SYS_close,             // descriptors whose owner is dropped, a vCPU's among them
    libc::SYS_exit,              // the end of a thread
    libc::SYS_futex,             // locks, condition variables, joins
    libc::SYS_getpid,            // pthread_kill, to name the own process to tgkill
    libc::SYS_getrandom,         // also: seeds of hash tables, and of malloc
    libc::SYS_gettid,            // a signal to the own thread; the names of threads in panics
    libc::SYS_madvise,           // stacks of threads that have ended, huge pages, pages of a working set
    libc::SYS_mremap,            // also: realloc of a large block
    libc::SYS_munmap,            // free, stacks, guest memory, kvm_run
    libc::SYS_restart_syscall,   // also: the kernel's own, after a wait that SIGSTOP and SIGCONT interrupted
    libc::SYS_rt_sigprocmask,    // pthread_kill, thread starts and ends
    libc::SYS_rt_sigreturn,      // the end of a signal's handler, by which a vCPU's thread is called out of the guest
    libc::SYS_sched_getaffinity, // also: the number of processors, for malloc's arenas and copies of an initramfs
    libc::SYS_sched_yield,       // also: std's locks and channels, after some spinning
    libc::SYS_sigaltstack,       // std's handler of stack overflows, at thread starts and ends
    libc::SYS_write,             // outputs of UARTs, event descriptors, stderr
    libc::SYS_writev,            // also: malloc's last words
];

/// Further calls of the monitor's threads but those of vCPUs.
#[rustfmt::skip]
pub(super) const PROCESS: &[i64] = &[
    libc::SYS_epoll_create1,   // the event loop of serial input
    libc::SYS_epoll_ctl,       // the same: its sources
    libc::SYS_epoll_pwait,     // also: the same, its wait, on arm64; on x86-64 another C library's
    libc::SYS_eventfd2,        // a machine's end, and room in its UARTs
    libc::SYS_exit_group,      // the end of the process; also: a panic
    libc::SYS_fstat,           // also: lengths and identities of given files
    libc::SYS_fsync,           // a snapshot's files
    libc::SYS_ftruncate,       // a snapshot's memory file
    libc::SYS_lseek,           // lengths of files, and holes of a memory file
    libc::SYS_pipe2,           // input from a reader, and COM2's ends
    libc::SYS_ppoll,           // also: waits for an output that does not wait itself; poll, on arm64
    libc::SYS_pread64,         // kernels, initramfs, page maps
    libc::SYS_preadv2,         // input from what others read too (RWF_NOWAIT)
    libc::SYS_pwrite64,        // a snapshot's memory file
    libc::SYS_read,            // input, frames, kernels, event and timer descriptors
    libc::SYS_recvfrom,        // frames from the broker
    libc::SYS_recvmsg,         // jobs from the broker, with descriptors
    libc::SYS_rseq,            // the start of a thread
    libc::SYS_rt_sigaction,    // the handler of the signal that calls vCPUs out of the guest
    libc::SYS_sendmsg,         // answers to the broker
    libc::SYS_set_robust_list, // the start of a thread
    libc::SYS_shutdown,        // the end of the frames
    libc::SYS_timerfd_create,  // the check for halted vCPUs
    libc::SYS_timerfd_settime, // the same
];

/// Calls that each thread may make with some arguments. Each row is one way to make one.
#[rustfmt::skip]
pub(super) const THREAD_CHECKED: &[(i64, &[Argument])] = &[
    // also: malloc. Memory is never executable: what is written can't become code.
    (libc::SYS_mmap, &[Bits { index: 2, mask: EXECUTABLE, value: 0 }]),
    (libc::SYS_mprotect, &[Bits { index: 2, mask: EXECUTABLE, value: 0 }]),
    // std asks whether a descriptor is open before it closes it, in debug builds.
    (libc::SYS_fcntl, &[Int(1, libc::F_GETFD.cast_unsigned())]),
];

/// Further calls of the monitor's threads but those of vCPUs, with some arguments.
#[rustfmt::skip]
pub(super) const PROCESS_CHECKED: &[(i64, &[Argument])] = &[
    // New threads; `clone` without CLONE_THREAD is a fork, and the rest of the mask are namespaces and tracing.
    (libc::SYS_clone, &[Bits { index: 0, mask: THREAD_FLAG | FORBIDDEN_FLAGS, value: THREAD_FLAG }]),
    // Frames to the broker. The sockets are connected; no address means that no other process can be named.
    (libc::SYS_sendto, &[Register(4, 0)]),
    // Copies of descriptors, as `try_clone` makes them.
    (libc::SYS_fcntl, &[Int(1, libc::F_DUPFD_CLOEXEC.cast_unsigned())]),
    // also: `fstat` of the C library from 2.33 to 2.38. A file's name may stand beside that flag; the root is empty.
    (libc::SYS_newfstatat, &[Int(3, libc::AT_EMPTY_PATH.cast_unsigned())]),
    // std's `File::metadata`, which calls nothing else once that has worked.
    (libc::SYS_statx, &[Int(2, libc::AT_EMPTY_PATH.cast_unsigned())]),
    // The names of threads, and what a narrower filter needs before it.
    (libc::SYS_prctl, &[Int(0, libc::PR_SET_NAME.cast_unsigned())]),
    (libc::SYS_prctl, &[Int(0, libc::PR_SET_NO_NEW_PRIVS.cast_unsigned())]),
    // The narrower filters of vCPU threads, without a listener.
    (libc::SYS_seccomp, &[Int(0, libc::SECCOMP_SET_MODE_FILTER), Int(1, 0)]),
    // also: the frames of a guest whose init has rings, which are read without waiting from its first frame on.
    (libc::SYS_ioctl, &[Int(1, request(libc::FIONBIO))]),
];

/// The argument by which `tgkill` names a process: a thread may send signals to threads of its own process.
pub(super) const TGKILL_PROCESS: u8 = 0;

/// Requests of `ioctl` that a vCPU's thread makes. The first is that of each exit.
#[rustfmt::skip]
pub(super) const VCPU_REQUESTS: &[Opcode] = &[
    none(KVM, 0x80),                    // KVM_RUN
    read::<kvm_mp_state>(KVM, 0x98),    // KVM_GET_MP_STATE: whether it is halted; snapshots
    read::<kvm_vcpu_events>(KVM, 0x9f), // KVM_GET_VCPU_EVENTS: the same
];

/// Further requests of the monitor's other threads.
#[rustfmt::skip]
pub(super) const PROCESS_REQUESTS: &[Opcode] = &[
    none(KVM, 0x01),                                 // KVM_CREATE_VM
    none(KVM, 0x03),                                 // KVM_CHECK_EXTENSION
    none(KVM, 0x04),                                 // KVM_GET_VCPU_MMAP_SIZE
    none(KVM, 0x41),                                 // KVM_CREATE_VCPU
    write::<kvm_userspace_memory_region>(KVM, 0x46), // KVM_SET_USER_MEMORY_REGION
    write::<kvm_mp_state>(KVM, 0x99),                // KVM_SET_MP_STATE: clones
    write::<kvm_vcpu_events>(KVM, 0xa0),             // KVM_SET_VCPU_EVENTS: clones
    write::<kvm_enable_cap>(KVM, 0xa3),              // KVM_ENABLE_CAP
    none(KVM, 0xce),                                 // KVM_GET_STATS_FD: --trace
];

/// Calls that open or look up a name, and others that the C library and std try and can do without. They return EACCES, for all
/// threads.
#[rustfmt::skip]
pub(super) const REFUSED: &[i64] = &[
    libc::SYS_faccessat,  // also: access
    libc::SYS_getcwd,     // also: backtraces of panics
    libc::SYS_newfstatat, // also: `stat` by name, which is what PROCESS_CHECKED leaves
    libc::SYS_openat,     // malloc: /proc/sys/vm/overcommit_memory; processors: /proc/self/cgroup, /sys/devices/system/cpu
    libc::SYS_prlimit64,  // also: the size of the first thread's stack
    libc::SYS_readlinkat, // also: names of descriptors
    libc::SYS_sysinfo,    // also: qsort, for the memory that it may use
    libc::SYS_uname,      // also: the kernel's version
];

/// Calls that return EACCES with some arguments.
pub(super) const REFUSED_CHECKED: &[(i64, &[Argument])] = &[
    // Whether a descriptor is a terminal.
    (libc::SYS_ioctl, &[Int(1, request(libc::TCGETS))]),
    // also: the same, of newer C libraries.
    (libc::SYS_ioctl, &[Int(1, request(libc::TCGETS2))]),
];

/// Calls that programs use where the kernel has them. They return ENOSYS, as in an older kernel, for all threads; so do the numbers of
/// calls that are newer than this list.
#[rustfmt::skip]
pub(super) const PROBES: &[i64] = &[
    libc::SYS_clone3,     // threads; its flags are in memory, which a filter can't read
    libc::SYS_faccessat2, // also: access
    libc::SYS_openat2,    // also: opens
    libc::SYS_statx,      // by a name: std calls stat then
];

const EXECUTABLE: u64 = libc::PROT_EXEC.cast_unsigned() as u64;
const THREAD_FLAG: u64 = libc::CLONE_THREAD.cast_unsigned() as u64;
/// Flags of `clone` that make namespaces, and that let a tracer of this thread trace the new one.
const FORBIDDEN_FLAGS: u64 = 0x7e02_0000 | libc::CLONE_PTRACE.cast_unsigned() as u64;

/// The request of an `ioctl` as the kernel sees it: 32 bits.
#[allow(
    clippy::cast_possible_truncation,
    reason = "requests have 32 bits, whatever the C library's type is"
)]
const fn request(number: libc::Ioctl) -> u32 {
    number as u32
}
