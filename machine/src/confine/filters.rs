//! The seccomp filters that [`calls`] describes: one of a process, and a shorter one more of each vCPU's thread, of which the kernel
//! takes the stricter result.
//!
//! A filter compares a call with those that it knows in the order of their numbers, of which `ioctl` has an early one, and its requests in
//! the order of their list, of which KVM_RUN is the first: an exit of the guest costs little.

use std::io;

use rustix::ioctl::Opcode;
use rustix::process::getpid;
use seccompiler::{BackendError, BpfProgram, SeccompAction};

use super::Names;
use super::calls::{self, arch, unpacker};
use crate::filter::{Argument, Rules, UNKNOWN, in_order, listed, rule};

/// Restricts all threads of this process to the monitor's calls.
///
/// # Errors
///
/// The kernel's, where it has no seccomp filters or refuses this one.
pub(super) fn restrict_process() -> io::Result<()> {
    restrict_all_threads(process_calls().and_then(|calls| answering(calls, &[])))
}

/// Restricts all threads of this process to the calls of an unpacker with such names.
///
/// # Errors
///
/// The kernel's, where it has no seccomp filters or refuses this one.
pub(super) fn restrict_unpacker(names: Names) -> io::Result<()> {
    let filter = unpacker_calls(names).and_then(|calls| answering(calls, unpacker::REFUSED));
    restrict_all_threads(filter)
}

fn restrict_all_threads(filter: Result<BpfProgram, BackendError>) -> io::Result<()> {
    let filter = filter.map_err(io::Error::other)?;
    seccompiler::apply_filter_all_threads(&filter).map_err(failure)
}

/// Restricts the calling thread to the calls of a vCPU's.
///
/// # Errors
///
/// The kernel's, where it refuses the filter.
pub(super) fn restrict_vcpu() -> io::Result<()> {
    let filter = thread_calls()
        .and_then(|calls| answering(calls, &[]))
        .map_err(io::Error::other)?;
    seccompiler::apply_filter(&filter).map_err(failure)
}

/// Returns the kernel's error as it is, so that it keeps its number.
fn failure(error: seccompiler::Error) -> io::Error {
    match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        error => io::Error::other(error),
    }
}

/// Compiles a filter that allows these calls, returns errors for those that are refused, `more` among them, and for probes, and ends the
/// process at any other call.
fn answering(granted: Rules, more: &[i64]) -> Result<BpfProgram, BackendError> {
    let error = |number: i32| SeccompAction::Errno(number.unsigned_abs());
    let probes = calls::PROBES.iter().copied().chain(UNKNOWN);
    let mut refused = listed([calls::REFUSED, arch::REFUSED, more].concat());
    add(&mut refused, calls::REFUSED_CHECKED)?;
    let lists = [
        (granted, SeccompAction::Allow),
        (refused, error(libc::EACCES)),
        (listed(probes), error(libc::ENOSYS)),
    ];
    in_order(lists, SeccompAction::KillProcess)
}

/// Returns the calls that each thread may make, with KVM's requests of a vCPU's.
fn thread_calls() -> Result<Rules, BackendError> {
    let mut rules = listed(calls::THREAD.iter().copied());
    add(&mut rules, calls::THREAD_CHECKED)?;
    add_requests(&mut rules, calls::VCPU_REQUESTS)?;
    add_requests(&mut rules, arch::VCPU_REQUESTS)?;
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

/// Returns the calls that an unpacker with such names may make.
fn unpacker_calls(names: Names) -> Result<Rules, BackendError> {
    let mut rules = listed(unpacker::FILE.iter().copied());
    add(&mut rules, unpacker::FILE_CHECKED)?;
    if names != Names::None {
        rules.append(&mut listed(unpacker::FOLDER.iter().copied()));
    }
    if names == Names::OfFolder {
        rules.append(&mut listed(unpacker::ROOTED.iter().copied()));
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
