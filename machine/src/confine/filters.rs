//! The seccomp filters that [`calls`] describes: one of a monitor's process, a shorter one more of each vCPU's thread, of which the kernel
//! takes the stricter result, and one each of the processes of a fetcher, of an unpacker and of one that serves folders.
//!
//! A filter compares a call with those that it knows in the order of their numbers, of which `ioctl` has an early one, and its requests in
//! the order of their list, of which KVM_RUN is the first: an exit of the guest costs little.

use std::io;
use std::sync::OnceLock;

use rustix::ioctl::Opcode;
use rustix::process::getpid;
use seccompiler::{BackendError, BpfProgram, SeccompAction};

use super::Names;
use super::calls::{self, arch, fetcher, folders, unpacker};
use crate::filter::{Argument, Rules, UNKNOWN, in_order, listed, rule};

/// The filter of vCPUs' threads, compiled once: what a thread of a few pages frees again, its allocator keeps.
static OF_VCPUS: OnceLock<BpfProgram> = OnceLock::new();

/// The result of a call that a filter doesn't know.
const KILLED: SeccompAction = SeccompAction::KillProcess;
/// The same in a fetcher: resolvers and the like, which know more ways than one, go on with another.
const REFUSED: SeccompAction = error(libc::EPERM);

/// Restricts all threads of this process to the monitor's calls.
///
/// # Errors
///
/// The kernel's, where it has no seccomp filters or refuses this one.
pub(super) fn restrict_process() -> io::Result<()> {
    let of_vcpus = compile(thread_calls(), refused_calls(&[]), KILLED)?;
    OF_VCPUS.get_or_init(|| of_vcpus);
    restrict_all(process_calls(), refused_calls(&[]), KILLED)
}

/// Restricts the calling thread to the calls of a vCPU's. [`restrict_process`] comes before.
///
/// # Errors
///
/// The kernel's, where it refuses the filter.
pub(super) fn restrict_vcpu() -> io::Result<()> {
    let filter = OF_VCPUS.get();
    let filter = filter.ok_or_else(|| io::Error::other("this process has no filter"))?;
    seccompiler::apply_filter(filter).map_err(failure)
}

/// Restricts all threads of this process to a fetcher's calls, with connections if it has a network.
///
/// # Errors
///
/// As [`restrict_process`]'s.
pub(super) fn restrict_fetcher(network: bool) -> io::Result<()> {
    restrict_all(fetcher_calls(network), Ok(Rules::new()), REFUSED)
}

/// Restricts all threads of this process to the calls of an unpacker with such names.
///
/// # Errors
///
/// As [`restrict_process`]'s.
pub(super) fn restrict_unpacker(names: Names) -> io::Result<()> {
    let refused = refused_calls(unpacker::REFUSED);
    restrict_all(unpacker_calls(names), refused, KILLED)
}

/// Restricts all threads of this process to the calls by which folders are served.
///
/// # Errors
///
/// As [`restrict_process`]'s.
pub(super) fn restrict_folders() -> io::Result<()> {
    restrict_all(folders_calls(), refused_calls(&[]), KILLED)
}

fn restrict_all(granted: Listed, refused: Listed, others: SeccompAction) -> io::Result<()> {
    let filter = compile(granted, refused, others)?;
    seccompiler::apply_filter_all_threads(&filter).map_err(failure)
}

/// Returns the kernel's error as it is, so that it keeps its number.
fn failure(error: seccompiler::Error) -> io::Error {
    match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        error => io::Error::other(error),
    }
}

/// Compiles a filter that allows the calls that are granted, returns EACCES for those that are refused and ENOSYS for probes; `others` is
/// the result of any other call.
fn compile(granted: Listed, refused: Listed, others: SeccompAction) -> io::Result<BpfProgram> {
    let compiled = || {
        let probes = calls::PROBES.iter().copied().chain(UNKNOWN);
        let lists = [
            (granted?, SeccompAction::Allow),
            (refused?, error(libc::EACCES)),
            (listed(probes), error(libc::ENOSYS)),
        ];
        in_order(lists, others)
    };
    compiled().map_err(io::Error::other)
}

const fn error(number: i32) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}

/// Calls with tests of their arguments, where these make rules.
type Listed = Result<Rules, BackendError>;

/// Returns the calls that a monitor and an unpacker are refused, and `more`.
fn refused_calls(more: &[i64]) -> Listed {
    let mut rules = listed([calls::REFUSED, arch::REFUSED, more].concat());
    add(&mut rules, calls::REFUSED_CHECKED)?;
    Ok(rules)
}

/// Returns the calls that each vCPU's thread may make.
fn thread_calls() -> Listed {
    let mut rules = common_calls()?;
    add_requests(&mut rules, calls::VCPU_REQUESTS)?;
    add_requests(&mut rules, arch::VCPU_REQUESTS)?;
    Ok(rules)
}

/// Returns the calls that each thread of a monitor, of a fetcher and of a process that serves folders may make.
fn common_calls() -> Listed {
    let mut rules = listed(calls::THREAD.iter().copied());
    add(&mut rules, calls::THREAD_CHECKED)?;
    let own = getpid().as_raw_nonzero().get().cast_unsigned();
    let process = Argument::Int(calls::TGKILL_PROCESS, own);
    add(&mut rules, &[(libc::SYS_tgkill, &[process])])?;
    Ok(rules)
}

/// Returns the calls that the process may make.
fn process_calls() -> Listed {
    let mut rules = thread_calls()?;
    rules.extend(listed([calls::PROCESS, arch::PROCESS].concat()));
    add(&mut rules, calls::PROCESS_CHECKED)?;
    add_requests(&mut rules, calls::PROCESS_REQUESTS)?;
    add_requests(&mut rules, arch::PROCESS_REQUESTS)?;
    Ok(rules)
}

/// Returns the calls that a fetcher may make.
fn fetcher_calls(network: bool) -> Listed {
    let mut rules = common_calls()?;
    rules.extend(listed([fetcher::CALLS, arch::FETCHER].concat()));
    add(&mut rules, fetcher::CHECKED)?;
    if network {
        rules.extend(listed(fetcher::NETWORK.iter().copied()));
        add(&mut rules, fetcher::NETWORK_CHECKED)?;
    }
    Ok(rules)
}

/// Returns the calls that an unpacker with such names may make.
fn unpacker_calls(names: Names) -> Listed {
    let mut rules = listed(unpacker::FILE.iter().copied());
    add(&mut rules, unpacker::FILE_CHECKED)?;
    if names != Names::None {
        rules.extend(listed(unpacker::FOLDER.iter().copied()));
    }
    if names == Names::OfFolder {
        rules.extend(listed(unpacker::ROOTED.iter().copied()));
    }
    Ok(rules)
}

/// Returns the calls by which folders are served.
fn folders_calls() -> Listed {
    let mut rules = common_calls()?;
    rules.extend(listed(folders::CALLS.iter().copied()));
    add(&mut rules, folders::CHECKED)?;
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
