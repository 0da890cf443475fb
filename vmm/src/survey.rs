//! A survey of this host's processor and KVM: what machines can use of them, and what follows where they lack something.

use kvm_ioctls::Kvm;

use crate::arch::survey::findings;
use crate::config::{CPUS_MAX, MEMORY_MIN};
use crate::error::Result;
use crate::kvm;

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
/// Where no machine can be made here at all: [`Builder::build`](crate::Builder::build)'s.
pub fn survey() -> Result<Vec<Finding>> {
    let kvm = kvm::open_kvm()?;
    let vm = kvm::create_vm(&kvm, MEMORY_MIN)?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_finding_has_a_short_name_of_its_own_and_a_remedy_where_it_is_needed() {
        let all = survey().expect("there is a KVM");
        let names: BTreeSet<_> = all.iter().map(|finding| finding.name).collect();
        assert_eq!(names.len(), all.len(), "{all:?}");
        assert!(all.len() > 1, "{all:?}");
        for finding in all {
            assert!(finding.name.len() <= 14, "{finding:?}");
            assert!(!finding.detail.is_empty(), "{finding:?}");
            assert!(finding.has || !finding.remedy.is_empty(), "{finding:?}");
        }
    }
}
