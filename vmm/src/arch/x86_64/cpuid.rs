//! What CPUID tells the guest: what KVM can virtualize, less nested virtualization, plus the machine's topology.
//!
//! The topology is one socket, one core a vCPU, one thread a core; a vCPU's number is its APIC ID.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// CPUID functions (Intel SDM vol. 2, "CPUID"; AMD APM vol. 3, appendix E "Obtaining Processor Information Via CPUID").
const FEATURES: u32 = 0x1;
const INTEL_CACHES: u32 = 0x4;
const INTEL_TOPOLOGY: u32 = 0xb;
const INTEL_TOPOLOGY_V2: u32 = 0x1f;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_SVM: u32 = 0x8000_000a;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_VMX: u32 = 1 << 5;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const AMD_ECX_CMP_LEGACY: u32 = 1 << 1;
const AMD_ECX_SVM: u32 = 1 << 2;

/// Levels of Intel's topology leaf.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// What the table depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Topology {
    /// This vCPU's number.
    pub(crate) vcpu: u8,
    /// Number of vCPUs.
    pub(crate) vcpus: u8,
    /// Whether KVM's local APIC has a timer that fires when the time stamp counter reaches a value.
    pub(crate) tsc_deadline: bool,
}

/// The table for one vCPU, made from what KVM supports on this host.
pub(crate) fn table(supported: &CpuId, topology: Topology) -> CpuId {
    let mut entries: Vec<_> = supported
        .as_slice()
        .iter()
        .copied()
        .filter(|entry| !rewritten(entry.function))
        .collect();
    for entry in &mut entries {
        adapt(entry, topology);
    }
    entries.extend(core_levels(INTEL_TOPOLOGY, topology));
    CpuId::from_entries(&entries).expect("no more entries than KVM gave, and two")
}

/// Leaves that are left out here and, where the guest needs them, made anew.
fn rewritten(function: u32) -> bool {
    matches!(function, INTEL_TOPOLOGY | INTEL_TOPOLOGY_V2 | AMD_SVM)
}

fn adapt(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let Topology {
        vcpu,
        vcpus,
        tsc_deadline,
    } = topology;
    let (vcpu, vcpus) = (u32::from(vcpu), u32::from(vcpus));
    match entry.function {
        FEATURES => {
            // EBX: the initial APIC ID, and how many IDs the package has, which counts if HTT says so.
            entry.ebx = (entry.ebx & 0xffff) | vcpus << 16 | vcpu << 24;
            set(&mut entry.edx, EDX_HTT, vcpus > 1);
            set(&mut entry.ecx, ECX_VMX, false);
            set(&mut entry.ecx, ECX_HYPERVISOR, true);
            set(&mut entry.ecx, ECX_TSC_DEADLINE, tsc_deadline);
        }
        INTEL_CACHES => {
            // EAX: cores in the package, and how many vCPUs share this cache. The last level is everybody's.
            let level = entry.eax >> 5 & 7;
            let sharing = if level == 3 { vcpus } else { 1 };
            entry.eax = (entry.eax & 0x3fff) | (sharing - 1) << 14 | (vcpus - 1) << 26;
        }
        AMD_CACHES => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level == 3 { vcpus } else { 1 };
            entry.eax = (entry.eax & 0x3fff) | (sharing - 1) << 14;
        }
        AMD_FEATURES => {
            set(&mut entry.ecx, AMD_ECX_SVM, false);
            set(&mut entry.ecx, AMD_ECX_CMP_LEGACY, vcpus > 1);
        }
        // ECX: the number of cores less one, and how many bits of the APIC ID they take.
        AMD_SIZES => entry.ecx = (vcpus - 1) | id_bits(vcpus) << 12,
        // The extended APIC ID, the core's number with one thread a core, and one node.
        AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (vcpu, vcpu, 0),
        _ => {}
    }
}

/// Leaf 0xb: a level of one thread a core, and one of all the cores.
fn core_levels(function: u32, topology: Topology) -> [kvm_cpuid_entry2; 2] {
    let vcpus = u32::from(topology.vcpus);
    let level = |index, kind: u32, shift, count| kvm_cpuid_entry2 {
        function,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: u32::from(topology.vcpu),
        ..Default::default()
    };
    [
        level(0, LEVEL_SMT, 0, 1),
        level(1, LEVEL_CORE, id_bits(vcpus), vcpus),
    ]
}

/// How many bits number `vcpus` of them.
fn id_bits(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

fn set(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_ones(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        }
    }

    fn leaf(table: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        table
            .as_slice()
            .iter()
            .copied()
            .find(|entry| entry.function == function && entry.index == index)
    }

    fn third_of_four() -> CpuId {
        let functions = [
            FEATURES,
            INTEL_CACHES,
            INTEL_TOPOLOGY,
            AMD_FEATURES,
            AMD_SIZES,
            AMD_SVM,
            AMD_TOPOLOGY,
        ];
        let supported = CpuId::from_entries(&functions.map(all_ones)).unwrap();
        table(
            &supported,
            Topology {
                vcpu: 2,
                vcpus: 4,
                tsc_deadline: false,
            },
        )
    }

    #[test]
    fn nested_virtualization_is_hidden() {
        let table = third_of_four();
        let features = leaf(&table, FEATURES, 0).unwrap();
        assert_eq!(features.ecx & (ECX_VMX | ECX_HYPERVISOR), ECX_HYPERVISOR);
        assert_eq!(leaf(&table, AMD_FEATURES, 0).unwrap().ecx & AMD_ECX_SVM, 0);
        assert!(leaf(&table, AMD_SVM, 0).is_none());
    }

    #[test]
    fn every_leaf_tells_the_same_topology() {
        let table = third_of_four();
        assert_eq!(leaf(&table, FEATURES, 0).unwrap().ebx >> 16, 0x0204);
        assert_eq!(leaf(&table, AMD_SIZES, 0).unwrap().ecx, 3 | 2 << 12);
        assert_eq!(leaf(&table, AMD_TOPOLOGY, 0).unwrap().eax, 2);
        let (threads, cores) = (
            leaf(&table, INTEL_TOPOLOGY, 0).unwrap(),
            leaf(&table, INTEL_TOPOLOGY, 1).unwrap(),
        );
        assert_eq!(
            (threads.eax, threads.ebx, threads.ecx, threads.edx),
            (0, 1, 0x100, 2)
        );
        assert_eq!(
            (cores.eax, cores.ebx, cores.ecx, cores.edx),
            (2, 4, 0x201, 2)
        );
        assert_eq!(leaf(&table, INTEL_CACHES, 0).unwrap().eax >> 26, 3);
    }
}
