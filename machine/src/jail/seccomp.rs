//! Seccomp filters: the system calls that a jail's programs may make. Seccompiler compiles the filters, bubblewrap installs them.
//!
//! Monty's worker and Deno need few calls: these are listed, and any other call ends the process. Calls that they try and can do
//! without are listed too, and return an error: probes for newer kernels' calls (ENOSYS, as in an older kernel), and calls that
//! need capabilities (EPERM). A browser and a kernel in user space make nearly all system calls, and make sandboxes of their own,
//! so for them the refused calls are listed: those that no program in a jail needs, and those by which kernels were attacked most.
//!
//! The filters also apply to the jail's first process, which is bubblewrap's.

#[cfg_attr(target_arch = "aarch64", path = "seccomp/aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "seccomp/x86_64.rs")]
mod arch;
mod lists;

use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompRule};

use crate::filter::{Argument, Rules, UNKNOWN, all_but, compile, listed, rule};
use lists::{
    CANNOT_BE_SEEN, DANGEROUS, DENO, IO_URING, MODES, MONTY, MOUNTS, OPENS, PROBES, REFUSED,
    TRACING,
};

/// Flags of `clone` and `unshare` that make namespaces, without CLONE_NEWTIME: `clone` reads that bit as a part of the signal.
const NAMESPACES: u64 = 0x7e02_0000;
const NEW_USER: u64 = 0x1000_0000;

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
    pub(super) fn filters(self) -> Result<Vec<Vec<u8>>, BackendError> {
        let probes = || listed(PROBES.iter().copied().chain(UNKNOWN));
        let filters = match self {
            Calls::Monty => only(&[MONTY, arch::MONTY], probes())?,
            Calls::Deno => only(&[MONTY, arch::MONTY, DENO, arch::DENO], probes())?,
            Calls::Ordinary => {
                let mut refused = refused(&[DANGEROUS, arch::DANGEROUS, MOUNTS, TRACING]);
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
                all_but(
                    refused(&[DANGEROUS, arch::DANGEROUS, MOUNTS, TRACING]),
                    libc::EPERM,
                )?,
                all_but(listed(IO_URING.iter().copied()), libc::ENOSYS)?,
            ],
            Calls::Container => {
                let mut denied = refused(&[DANGEROUS, arch::DANGEROUS]);
                denied.extend(set_ids()?);
                // A filter can't read the mode that `openat2` makes a file with.
                let probes = listed(IO_URING.iter().copied().chain([libc::SYS_openat2]));
                vec![
                    all_but(denied, libc::EPERM)?,
                    all_but(probes, libc::ENOSYS)?,
                ]
            }
        };
        Ok(filters.iter().map(bytes).collect())
    }
}

/// Compiles filters that allow the listed calls and `clone` without namespaces, return errors for probes and refused calls, and
/// end the process at any other call.
fn only(allowed: &[&[i64]], probes: Rules) -> Result<Vec<BpfProgram>, BackendError> {
    let denied = listed(REFUSED.iter().copied());
    let mut known = listed(allowed.concat());
    known.extend(probes.clone());
    known.extend(denied.clone());
    let none = rule(&[Argument::Bits {
        index: 0,
        mask: NAMESPACES,
        value: 0,
    }])?;
    known.insert(libc::SYS_clone, vec![none]);
    let first = compile(known, SeccompAction::KillProcess, SeccompAction::Allow)?;
    Ok(vec![
        first,
        all_but(probes, libc::ENOSYS)?,
        all_but(denied, libc::EPERM)?,
    ])
}

/// Rules that match these calls with any arguments, in each ABI that the kernel may support.
fn refused(calls: &[&[i64]]) -> Rules {
    let calls = calls.concat();
    let of_abi = |abi: &i64| {
        let abi = *abi;
        calls.iter().map(move |call| call | abi)
    };
    let others = arch::OTHER_ABIS.iter().flat_map(of_abi);
    listed(calls.iter().copied().chain(others))
}

/// Rules that match where a file gets a set-user-ID or set-group-ID bit: in a folder that is shared with the program, it would be a
/// program of this user's for all users of the host. (`mkdir` sets neither.)
fn set_ids() -> Result<Rules, BackendError> {
    let bits = |index, mask: u64| Argument::Bits {
        index,
        mask,
        value: mask,
    };
    let making = [libc::O_CREAT, libc::O_TMPFILE & !libc::O_DIRECTORY];
    let making = making.map(|flag| u64::from(flag.unsigned_abs()));
    let mut rules = Rules::new();
    let mut add = |call: i64, arguments: &[Argument]| {
        for abi in [0].iter().chain(arch::OTHER_ABIS) {
            let matching = rules.entry(call | abi).or_default();
            matching.push(rule(arguments)?);
        }
        Ok(())
    };
    for set_id in [libc::S_ISUID, libc::S_ISGID].map(u64::from) {
        for &(call, mode) in MODES.iter().chain(arch::MODES) {
            add(call, &[bits(mode, set_id)])?;
        }
        for &(call, flags, mode) in OPENS.iter().chain(arch::OPENS) {
            for flag in making {
                add(call, &[bits(flags, flag), bits(mode, set_id)])?;
            }
        }
    }
    Ok(rules)
}

/// A rule that matches this flag in a call's first argument.
fn flag(flag: u64) -> Result<SeccompRule, BackendError> {
    rule(&[Argument::Bits {
        index: 0,
        mask: flag,
        value: flag,
    }])
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
        let allowed: Vec<i64> = [MONTY, arch::MONTY, DENO, arch::DENO].concat();
        for call in [
            DANGEROUS,
            arch::DANGEROUS,
            MOUNTS,
            TRACING,
            IO_URING,
            REFUSED,
            PROBES,
        ]
        .concat()
        {
            assert!(!allowed.contains(&call), "{call}");
        }
    }
}
