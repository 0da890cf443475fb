//! A survey of this host's processor and KVM: what machines can use of them, and what follows where they lack something.

use std::io;
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use minivm_vmm::CPUS_MAX;

use crate::arch::survey::{empty_machine, findings};

/// Something that machines use of a processor or KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name, of at most 14 characters.
    pub name: &'static str,
    /// Whether this host has it.
    pub has: bool,
    /// What machines get by it; where this host lacks it, the consequence.
    pub detail: String,
    /// The remedy where this host lacks it.
    pub remedy: &'static str,
}

impl Finding {
    /// Makes the finding of something that a host has or lacks.
    pub(crate) fn new(
        name: &'static str,
        has: bool,
        [with, without]: [&str; 2],
        remedy: &'static str,
    ) -> Self {
        Finding {
            name,
            has,
            detail: if has { with } else { without }.to_owned(),
            remedy,
        }
    }
}

/// Returns what this host has and lacks.
///
/// # Errors
///
/// The kernel's, where no machine can be made here at all.
pub fn kvm() -> io::Result<Vec<Finding>> {
    let kvm = Kvm::new()?;
    let vm = empty_machine(&kvm)?;
    let mut all = vec![vcpus(&kvm)];
    all.extend(findings(&kvm, &vm));
    Ok(all)
}

/// KVM's limit of a machine's vCPUs.
fn vcpus(kvm: &Kvm) -> Finding {
    // The most that a machine can have. (KVM API 4.4, KVM_CHECK_EXTENSION; 4.7, KVM_CREATE_VCPU, KVM_CAP_MAX_VCPUS.)
    let most = kvm.get_max_vcpus();
    let enough = most >= usize::from(CPUS_MAX);
    Finding {
        name: "kvm: vcpus",
        has: enough,
        detail: match enough {
            true => format!("up to {most} a machine, and minivm's have up to {CPUS_MAX}"),
            false => format!("machines have at most {most}, not {CPUS_MAX}"),
        },
        remedy: "a host whose interrupt controller is for more processors",
    }
}

/// Measures how long KVM takes to create an empty machine: the median of five. On some hosts it is a hundred times slower than
/// on others, see `minivm doctor`.
///
/// # Errors
///
/// The kernel's, where there is no usable KVM.
pub fn create_vm_time() -> io::Result<Duration> {
    let kvm = Kvm::new()?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let vm = empty_machine(&kvm)?;
        times.push(start.elapsed());
        drop(vm);
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
