//! Seccomp filters: the system calls that a jail's programs may make. Seccompiler compiles the filters, bubblewrap installs them.
//!
//! Monty's worker and Deno need few calls: these are listed, and any other call ends the process. Calls that they try and can do
//! without are listed too, and return an error: probes for newer kernels' calls (ENOSYS, as in an older kernel), and calls that
//! need capabilities (EPERM). A browser and a kernel in user space make nearly all system calls, and make sandboxes of their own,
//! so for them the refused calls are listed: those that no program in a jail needs, and those by which kernels were attacked most.
//!
//! The filters also apply to the jail's first process, which is bubblewrap's.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Flags of `clone` and `unshare` that make namespaces, without CLONE_NEWTIME: `clone` reads that bit as a part of the signal.
const NAMESPACES: u64 = 0x7e02_0000;
const NEW_USER: u64 = 0x1000_0000;
/// Numbers of calls that newer kernels than those this program knows may have. They return ENOSYS.
const UNKNOWN: std::ops::Range<i64> = 463..512;
/// The bit that marks calls of the x32 ABI, which has the same numbers (`__X32_SYSCALL_BIT`). Few kernels support it.
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A set of system calls that a program may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Calls of Monty's worker.
    Monty,
    /// Calls of Deno.
    Deno,
    /// Calls of ordinary programs.
    Ordinary,
    /// [`Calls::Ordinary`], and making user namespaces, as Chromium's sandbox does.
    Browser,
    /// [`Calls::Browser`], and mounting and tracing, as gVisor does.
    Container,
}

impl Calls {
    /// Returns whether the program may make user namespaces.
    pub(super) fn make_user_namespaces(self) -> bool {
        matches!(self, Calls::Browser | Calls::Container)
    }

    /// Compiles the filters, each a BPF program in the kernel's format. The kernel runs all of them, and the strictest result
    /// counts; the first one is useful without the others.
    ///
    /// # Errors
    ///
    /// Seccompiler's error, where a filter is invalid for this processor.
    pub(super) fn filters(self) -> Result<Vec<Vec<u8>>, seccompiler::BackendError> {
        let probes = || listed(PROBES.iter().copied().chain(UNKNOWN));
        let filters = match self {
            Calls::Monty => only(&[MONTY], probes())?,
            Calls::Deno => only(&[MONTY, DENO], probes())?,
            Calls::Ordinary => {
                let mut refused = refused(&[DANGEROUS, MOUNTS, TRACING]);
                refused.insert(libc::SYS_unshare, vec![flag(NEW_USER)?]);
                refused.insert(libc::SYS_clone, vec![flag(NEW_USER)?]);
                // A filter can't read `clone3`'s flags, and C libraries fall back to `clone`.
                let probes = listed(CANNOT_BE_SEEN.iter().chain(IO_URING).copied());
                vec![
                    all_but(refused, libc::EPERM)?,
                    all_but(probes, libc::ENOSYS)?,
                ]
            }
            Calls::Browser => vec![
                all_but(refused(&[DANGEROUS, MOUNTS, TRACING]), libc::EPERM)?,
                all_but(listed(IO_URING.iter().copied()), libc::ENOSYS)?,
            ],
            Calls::Container => vec![
                all_but(refused(&[DANGEROUS]), libc::EPERM)?,
                all_but(listed(IO_URING.iter().copied()), libc::ENOSYS)?,
            ],
        };
        Ok(filters.iter().map(bytes).collect())
    }
}

/// Compiles filters that allow the listed calls and `clone` without namespaces, return errors for probes and refused calls, and
/// end the process at any other call.
fn only(allowed: &[&[i64]], probes: Rules) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let denied = listed(REFUSED.iter().copied());
    let mut known = listed(allowed.concat());
    known.extend(probes.clone());
    known.extend(denied.clone());
    let none = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(NAMESPACES),
        0,
    )?;
    known.insert(libc::SYS_clone, vec![SeccompRule::new(vec![none])?]);
    let first = filter(known, SeccompAction::KillProcess, SeccompAction::Allow)?;
    Ok(vec![
        first,
        all_but(probes, libc::ENOSYS)?,
        all_but(denied, libc::EPERM)?,
    ])
}

/// Compiles a filter that returns an error for some calls, and allows the others.
fn all_but(refused: Rules, error: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let error = SeccompAction::Errno(error.unsigned_abs());
    filter(refused, SeccompAction::Allow, error)
}

fn filter(
    rules: Rules,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, listed, machine)?.try_into()
}

/// Rules that match these calls with any arguments.
fn listed(calls: impl IntoIterator<Item = i64>) -> Rules {
    let calls: BTreeSet<i64> = calls.into_iter().collect();
    calls.into_iter().map(|call| (call, Vec::new())).collect()
}

/// Rules that match these calls with any arguments, in each ABI that the kernel may support.
fn refused(calls: &[&[i64]]) -> Rules {
    let calls = calls.concat();
    #[cfg(target_arch = "x86_64")]
    let calls = [calls.clone(), calls.iter().map(|call| call | X32).collect()].concat();
    listed(calls)
}

/// A rule that matches this flag in a call's first argument.
fn flag(flag: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    let op = SeccompCmpOp::MaskedEq(flag);
    SeccompRule::new(vec![SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        op,
        flag,
    )?])
}

/// Encodes a filter in the kernel's format, an array of `struct sock_filter`.
fn bytes(program: &BpfProgram) -> Vec<u8> {
    let instruction = |one: &seccompiler::sock_filter| {
        let mut bytes = one.code.to_ne_bytes().to_vec();
        bytes.extend([one.jt, one.jf]);
        bytes.extend(one.k.to_ne_bytes());
        bytes
    };
    program.iter().flat_map(instruction).collect()
}

/// Calls of a Rust program that reads, writes and has threads, of bubblewrap's first process, and of the dynamic linker.
const MONTY: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_prlimit64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

/// Further calls of a JavaScript engine with an event loop. Those that make files serve for making Deno's caches.
const DENO: &[i64] = &[
    libc::SYS_chdir,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getpgid,
    libc::SYS_getpriority,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_ioctl,
    libc::SYS_kill,
    libc::SYS_linkat,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mkdirat,
    libc::SYS_mlock,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_pipe2,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    libc::SYS_statfs,
    libc::SYS_symlinkat,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_settime,
    libc::SYS_times,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_create,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getpgrp,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// Calls that programs use where the kernel has them. `clone3` can't be allowed: its flags are in memory, which a filter can't
/// read.
const PROBES: &[i64] = &[
    libc::SYS_clone3,
    libc::SYS_epoll_pwait2,
    libc::SYS_futex_waitv,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_openat2,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_process_madvise,
];

/// Calls that fail with EPERM: priorities and processors of threads, memory policies, sockets of any kind, new namespaces.
const REFUSED: &[i64] = &[
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_get_mempolicy,
    libc::SYS_ioprio_set,
    libc::SYS_listen,
    libc::SYS_mbind,
    libc::SYS_mlockall,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_set_mempolicy,
    libc::SYS_setpriority,
    libc::SYS_setrlimit,
    libc::SYS_socket,
    libc::SYS_unshare,
];

const CANNOT_BE_SEEN: &[i64] = &[libc::SYS_clone3];

const IO_URING: &[i64] = &[
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Calls that no program in a jail needs.
const DANGEROUS: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_migrate_pages,
    libc::SYS_mount_setattr,
    libc::SYS_move_pages,
    libc::SYS_mq_open,
    libc::SYS_msgget,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_semget,
    libc::SYS_setdomainname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_shmget,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
];

const MOUNTS: &[i64] = &[
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_sethostname,
    libc::SYS_umount2,
];

const TRACING: &[i64] = &[
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_programs_that_the_kernel_takes() {
        for calls in [
            Calls::Monty,
            Calls::Deno,
            Calls::Ordinary,
            Calls::Browser,
            Calls::Container,
        ] {
            for filter in calls.filters().unwrap() {
                let instructions = filter.len() / 8;
                assert!(filter.len() % 8 == 0 && instructions < 4096, "{calls:?}");
            }
        }
    }

    #[test]
    fn no_dangerous_call_is_allowed_by_name() {
        let allowed: Vec<i64> = [MONTY, DENO].concat();
        for call in [DANGEROUS, MOUNTS, TRACING, IO_URING, REFUSED, PROBES].concat() {
            assert!(!allowed.contains(&call), "{call}");
        }
    }
}
