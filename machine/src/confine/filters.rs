//! The seccomp filters that [`calls`] describes: one of a monitor's process, a shorter one more of each vCPU's thread, of which the kernel
//! takes the stricter result, and one of a fetcher's process.
//!
//! A filter compares a call with those that it knows in the order of their numbers, of which `ioctl` has an early one, and its requests in
//! the order of their list, of which KVM_RUN is the first: an exit of the guest costs little.

use std::io;

use rustix::ioctl::Opcode;
use rustix::process::getpid;
use seccompiler::{BackendError, BpfProgram, SeccompAction};

use super::calls::{self, arch, fetcher};
use crate::filter::{Argument, Rules, UNKNOWN, in_order, listed, rule};

/// Restricts all threads of this process to the monitor's calls.
///
/// # Errors
///
/// The kernel's, where it has no seccomp filters or refuses this one.
pub(super) fn restrict_process() -> io::Result<()> {
    let filter = process_calls()
        .and_then(answering)
        .map_err(io::Error::other)?;
    seccompiler::apply_filter_all_threads(&filter).map_err(failure)
}

/// Restricts the calling thread to the calls of a vCPU's.
///
/// # Errors
///
/// The kernel's, where it refuses the filter.
pub(super) fn restrict_vcpu() -> io::Result<()> {
    let filter = thread_calls()
        .and_then(answering)
        .map_err(io::Error::other)?;
    seccompiler::apply_filter(&filter).map_err(failure)
}

/// Restricts all threads of this process to a fetcher's calls, with connections if it has a network.
///
/// # Errors
///
/// The kernel's, where it has no seccomp filters or refuses this one.
pub(super) fn restrict_fetcher(network: bool) -> io::Result<()> {
    let filter = fetcher_calls(network)
        .and_then(refusing)
        .map_err(io::Error::other)?;
    seccompiler::apply_filter_all_threads(&filter).map_err(failure)
}

/// Returns the kernel's error as it is, so that it keeps its number.
fn failure(error: seccompiler::Error) -> io::Error {
    match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        error => io::Error::other(error),
    }
}

/// Compiles a filter that allows these calls, returns errors for those that are refused and for probes, and ends the process at any
/// other call.
fn answering(granted: Rules) -> Result<BpfProgram, BackendError> {
    let error = |number: i32| SeccompAction::Errno(number.unsigned_abs());
    let probes = calls::PROBES.iter().copied().chain(UNKNOWN);
    let mut refused = listed([calls::REFUSED, arch::REFUSED].concat());
    add(&mut refused, calls::REFUSED_CHECKED)?;
    let lists = [
        (granted, SeccompAction::Allow),
        (refused, error(libc::EACCES)),
        (listed(probes), error(libc::ENOSYS)),
    ];
    in_order(lists, SeccompAction::KillProcess)
}

/// Compiles a filter that allows these calls, returns ENOSYS for probes, and EPERM for any other call: resolvers and the like, which know
/// more ways than one, go on with another.
fn refusing(granted: Rules) -> Result<BpfProgram, BackendError> {
    let error = |number: i32| SeccompAction::Errno(number.unsigned_abs());
    let probes = calls::PROBES.iter().copied().chain(UNKNOWN);
    let lists = [
        (granted, SeccompAction::Allow),
        (listed(probes), error(libc::ENOSYS)),
    ];
    in_order(lists, error(libc::EPERM))
}

/// Returns the calls that each vCPU's thread may make.
fn thread_calls() -> Result<Rules, BackendError> {
    let mut rules = common_calls()?;
    add_requests(&mut rules, calls::VCPU_REQUESTS)?;
    add_requests(&mut rules, arch::VCPU_REQUESTS)?;
    Ok(rules)
}

/// Returns the calls that each thread of a monitor and of a fetcher may make.
fn common_calls() -> Result<Rules, BackendError> {
    let mut rules = listed(calls::THREAD.iter().copied());
    add(&mut rules, calls::THREAD_CHECKED)?;
    let own = getpid().as_raw_nonzero().get().cast_unsigned();
    let process = Argument::Int(calls::TGKILL_PROCESS, own);
    add(&mut rules, &[(libc::SYS_tgkill, &[process])])?;
    Ok(rules)
}

/// Returns the calls that the process may make.
fn process_calls() -> Result<Rules, BackendError> {
    let mut rules = thread_calls()?;
    rules.extend(listed([calls::PROCESS, arch::PROCESS].concat()));
    add(&mut rules, calls::PROCESS_CHECKED)?;
    add_requests(&mut rules, calls::PROCESS_REQUESTS)?;
    add_requests(&mut rules, arch::PROCESS_REQUESTS)?;
    Ok(rules)
}

/// Returns the calls that a fetcher may make.
fn fetcher_calls(network: bool) -> Result<Rules, BackendError> {
    let mut rules = common_calls()?;
    rules.extend(listed([fetcher::CALLS, arch::FETCHER].concat()));
    add(&mut rules, fetcher::CHECKED)?;
    if network {
        rules.extend(listed(fetcher::NETWORK.iter().copied()));
        add(&mut rules, fetcher::NETWORK_CHECKED)?;
    }
    Ok(rules)
}

/// Adds calls with tests of their arguments.
fn add(rules: &mut Rules, calls: &[(i64, &[Argument])]) -> Result<(), BackendError> {
    for (call, arguments) in calls {
        rules.entry(*call).or_default().push(rule(arguments)?);
    }
    Ok(())
}

/// Adds requests of `ioctl`.
fn add_requests(rules: &mut Rules, requests: &[Opcode]) -> Result<(), BackendError> {
    for request in requests {
        add(rules, &[(libc::SYS_ioctl, &[Argument::Int(1, *request)])])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
