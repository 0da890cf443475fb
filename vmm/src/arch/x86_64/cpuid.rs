//! The guest's CPUID table: all that KVM can virtualize, less the hidden features, plus the machine's topology.
//!
//! The topology is one socket, one core a vCPU, one thread a core; a vCPU's number is its APIC ID.
//!
//! Hidden are features that a sandbox has no use for and that have a cost: nested virtualization, counters of the processor's
//! events and traces of its branches (precise clocks for side channels), enclaves, and state that isn't saved with a machine
//! (shadow stacks, matrix tiles). A table that comes with a snapshot goes through the same filter.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// CPUID functions (Intel SDM vol. 2, "CPUID"; AMD APM vol. 3, appendix E "Obtaining Processor Information Via CPUID").
pub(super) const VENDOR: u32 = 0x0;
pub(super) const FEATURES: u32 = 0x1;
const INTEL_CACHES: u32 = 0x4;
const MORE_FEATURES: u32 = 0x7;
const INTEL_TOPOLOGY: u32 = 0xb;
pub(super) const XSAVE: u32 = 0xd;
const INTEL_TOPOLOGY_V2: u32 = 0x1f;
const AMD_FEATURES: u32 = 0x8000_0001;
pub(super) const SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const AMD_ECX_CMP_LEGACY: u32 = 1 << 1;

/// Levels of Intel's topology leaf.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The registers of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

pub(super) use Register::{Eax, Ebx, Ecx, Edx};

impl Register {
    pub(super) const ALL: [Register; 4] = [Eax, Ebx, Ecx, Edx];

    pub(super) fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Eax => entry.eax,
            Ebx => entry.ebx,
            Ecx => entry.ecx,
            Edx => entry.edx,
        }
    }

    fn of_mut(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Eax => &mut entry.eax,
            Ebx => &mut entry.ebx,
            Ecx => &mut entry.ecx,
            Edx => &mut entry.edx,
        }
    }
}

/// Leaves that describe hidden features and nothing else.
const HIDDEN_LEAVES: [u32; 10] = [
    0xa,         // Intel's counters
    0x12,        // SGX
    0x14,        // Processor Trace
    0x1c,        // branch records
    0x1d,        // tiles
    0x1e,        // multiplication of tiles
    0x23,        // Intel's counters, version 2
    0x8000_000a, // AMD's nested virtualization
    0x8000_001b, // AMD's sampling
    0x8000_0022, // AMD's counters, version 2
];

/// Parts of the extended state that are hidden, by their numbers: Processor Trace's, shadow stacks' (the user's and the
/// supervisor's), last branch records', and the tiles' configuration and content. (Intel SDM vol. 1, "XSAVE-Supported
/// Features and State-Component Bitmaps".)
const HIDDEN_STATES: [u32; 6] = [8, 11, 12, 15, 17, 18];

/// Bits of other leaves that are hidden: function, index, register, bits.
const HIDDEN_BITS: [(u32, u32, Register, u32); 9] = [
    // dtes64, ds_cpl (a log of branches, with its filter), vmx, pdcm (the counters' capabilities)
    (FEATURES, 0, Ecx, 1 << 2 | 1 << 4 | 1 << 5 | 1 << 15),
    // ds (the log itself)
    (FEATURES, 0, Edx, 1 << 21),
    // sgx, intel_pt
    (MORE_FEATURES, 0, Ebx, 1 << 2 | 1 << 25),
    // shstk, sgx_lc
    (MORE_FEATURES, 0, Ecx, 1 << 7 | 1 << 30),
    // sgx_keys, arch_lbr, ibt, amx_bf16, amx_tile, amx_int8
    (
        MORE_FEATURES,
        0,
        Edx,
        1 << 1 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25,
    ),
    // arch_perfmon_ext, amx_fp16
    (MORE_FEATURES, 1, Eax, 1 << 8 | 1 << 21),
    // amx_complex, cet_sss
    (MORE_FEATURES, 1, Edx, 1 << 8 | 1 << 18),
    // xfd: it keeps programs from parts of the state, of which only the tiles are such
    (XSAVE, 1, Eax, 1 << 4),
    // svm, ibs, perfctr_core, perfctr_nb, perfctr_llc
    (
        AMD_FEATURES,
        0,
        Ecx,
        1 << 2 | 1 << 10 | 1 << 23 | 1 << 24 | 1 << 28,
    ),
];

/// Takes the hidden features out of a table, KVM's or a snapshot's.
pub(super) fn hide(entries: &mut Vec<kvm_cpuid_entry2>) {
    entries.retain(|entry| {
        let hidden_state = entry.function == XSAVE && HIDDEN_STATES.contains(&entry.index);
        !hidden_state && !HIDDEN_LEAVES.contains(&entry.function)
    });
    for entry in entries {
        for (function, index, register, bits) in HIDDEN_BITS {
            if (entry.function, entry.index) == (function, index) {
                *register.of_mut(entry) &= !bits;
            }
        }
        // EAX of its leaf 0 has the parts that a user may have, ECX of leaf 1 those of the supervisor: a bit each.
        let states = HIDDEN_STATES.iter().fold(0, |bits, part| bits | 1 << part);
        match (entry.function, entry.index) {
            (XSAVE, 0) => entry.eax &= !states,
            (XSAVE, 1) => entry.ecx &= !states,
            _ => {}
        }
    }
}

/// The machine's shape, on which a vCPU's table depends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Topology {
    /// This vCPU's number.
    pub(crate) vcpu: u8,
    /// Number of vCPUs.
    pub(crate) vcpus: u8,
    /// Whether KVM's local APIC has a timer that fires when the time stamp counter reaches a value.
    pub(crate) tsc_deadline: bool,
}

/// Returns the table for one vCPU, made from the one that KVM supports on this host.
pub(crate) fn table(supported: &CpuId, topology: Topology) -> CpuId {
    let mut entries = supported.as_slice().to_vec();
    let amd = is_amd(&entries);
    hide(&mut entries);
    entries.retain(|entry| !REWRITTEN.contains(&entry.function));
    for entry in &mut entries {
        adapt(entry, topology, amd);
    }
    entries.extend(core_levels(INTEL_TOPOLOGY, topology));
    CpuId::from_entries(&entries).expect("no more entries than KVM gave, and two")
}

/// Leaves that are left out and, where the guest needs them, made anew.
const REWRITTEN: [u32; 3] = [INTEL_TOPOLOGY, INTEL_TOPOLOGY_V2, AMD_TOPOLOGY_V2];

/// Returns the vendor's name as the processor spells it, `GenuineIntel` or `AuthenticAMD`.
pub(super) fn vendor(table: &[kvm_cpuid_entry2]) -> String {
    let entry = leaf(table, VENDOR, 0).copied().unwrap_or_default();
    let bytes = [entry.ebx, entry.edx, entry.ecx]
        .map(u32::to_le_bytes)
        .concat();
    bytes.escape_ascii().to_string()
}

/// Returns whether leaves from 8000_0001 on have AMD's meaning: other vendors have some of them, with other fields.
fn is_amd(table: &[kvm_cpuid_entry2]) -> bool {
    matches!(&*vendor(table), "AuthenticAMD" | "HygonGenuine")
}

pub(super) fn leaf(
    table: &[kvm_cpuid_entry2],
    function: u32,
    index: u32,
) -> Option<&kvm_cpuid_entry2> {
    table
        .iter()
        .find(|entry| (entry.function, entry.index) == (function, index))
}

fn adapt(entry: &mut kvm_cpuid_entry2, topology: Topology, amd: bool) {
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
            set(&mut entry.ecx, ECX_HYPERVISOR, true);
            set(&mut entry.ecx, ECX_TSC_DEADLINE, tsc_deadline);
        }
        INTEL_CACHES => {
            // EAX: cores in the package, and how many vCPUs share this cache. All of them share the last level.
            let level = entry.eax >> 5 & 7;
            let sharing = if level == 3 { vcpus } else { 1 };
            entry.eax = (entry.eax & 0x3fff) | (sharing - 1) << 14 | (vcpus - 1) << 26;
        }
        AMD_CACHES if amd => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level == 3 { vcpus } else { 1 };
            entry.eax = (entry.eax & 0x3fff) | (sharing - 1) << 14;
        }
        // CmpLegacy: the package's many IDs are cores, not threads. AMD's only: Linux takes an Intel processor with it for one
        // without threads, whatever its other leaves say.
        AMD_FEATURES => set(&mut entry.ecx, AMD_ECX_CMP_LEGACY, amd && vcpus > 1),
        // ECX: the number of cores less one, and how many bits of the APIC ID they take. Intel has nothing there.
        SIZES if amd => entry.ecx = (vcpus - 1) | id_bits(vcpus) << 12,
        SIZES => entry.ecx = 0,
        // The extended APIC ID, the core's number with one thread a core, and one node.
        AMD_TOPOLOGY if amd => (entry.eax, entry.ebx, entry.ecx) = (vcpu, vcpu, 0),
        _ => {}
    }
}

/// Returns leaf 0xb: a level of one thread a core, and one of all the cores.
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

/// Returns how many bits it takes to number `vcpus` vCPUs.
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

    const AMD: [&[u8; 4]; 3] = [b"Auth", b"enti", b"cAMD"];
    const HYGON: [&[u8; 4]; 3] = [b"Hygo", b"nGen", b"uine"];
    const INTEL: [&[u8; 4]; 3] = [b"Genu", b"ineI", b"ntel"];

    fn all_ones((function, index): (u32, u32)) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        }
    }

    fn made_by(vendor: [&[u8; 4]; 3]) -> kvm_cpuid_entry2 {
        let [ebx, edx, ecx] = vendor.map(|part| u32::from_le_bytes(*part));
        kvm_cpuid_entry2 {
            function: VENDOR,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    /// Returns every leaf that the code here changes, and two that it doesn't, with every bit set.
    fn everything(vendor: [&[u8; 4]; 3]) -> Vec<kvm_cpuid_entry2> {
        let others = [
            FEATURES,
            INTEL_CACHES,
            INTEL_TOPOLOGY,
            INTEL_TOPOLOGY_V2,
            AMD_FEATURES,
            SIZES,
            AMD_CACHES,
            AMD_TOPOLOGY,
            AMD_TOPOLOGY_V2,
            0x19,
            0x8000_0021,
        ];
        let leaves = others.iter().chain(&HIDDEN_LEAVES).map(|&leaf| (leaf, 0));
        let more = (0..3).map(|index| (MORE_FEATURES, index));
        let states = (0..20).map(|index| (XSAVE, index));
        let entries = leaves.chain(more).chain(states).map(all_ones);
        [made_by(vendor)].into_iter().chain(entries).collect()
    }

    fn leaf_of(table: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        leaf(table.as_slice(), function, index).copied()
    }

    fn third_of_four(vendor: [&[u8; 4]; 3]) -> CpuId {
        let topology = Topology {
            vcpu: 2,
            vcpus: 4,
            tsc_deadline: false,
        };
        let supported = CpuId::from_entries(&everything(vendor)).unwrap();
        table(&supported, topology)
    }

    /// Returns the hidden features that a table still has.
    fn left(table: &[kvm_cpuid_entry2]) -> Vec<String> {
        let mut left = Vec::new();
        let leaves = [0xa, 0x12, 0x14, 0x1c, 0x1d, 0x1e, 0x23];
        let extended = [0x8000_000a, 0x8000_001b, 0x8000_0022];
        for entry in table {
            if leaves.contains(&entry.function) || extended.contains(&entry.function) {
                left.push(format!("leaf {:#x}", entry.function));
            }
            if entry.function == 0xd && [8, 11, 12, 15, 17, 18].contains(&entry.index) {
                left.push(format!("state {}", entry.index));
            }
        }
        let bits: [(u32, u32, Register, &[u32]); 11] = [
            (0x1, 0, Ecx, &[2, 4, 5, 15]),
            (0x1, 0, Edx, &[21]),
            (0x7, 0, Ebx, &[2, 25]),
            (0x7, 0, Ecx, &[7, 30]),
            (0x7, 0, Edx, &[1, 19, 20, 22, 24, 25]),
            (0x7, 1, Eax, &[8, 21]),
            (0x7, 1, Edx, &[8, 18]),
            (0xd, 0, Eax, &[17, 18]),
            (0xd, 1, Eax, &[4]),
            (0xd, 1, Ecx, &[8, 11, 12, 15]),
            (0x8000_0001, 0, Ecx, &[2, 10, 23, 24, 28]),
        ];
        for (function, index, register, bits) in bits {
            let word = register.of(leaf(table, function, index).unwrap());
            let set = bits.iter().filter(|bit| word & 1 << **bit != 0);
            left.extend(set.map(|bit| format!("{function:#x}.{index} {register:?} {bit}")));
        }
        left
    }

    #[test]
    fn hidden_features_are_gone_for_every_vendor() {
        assert_eq!(left(&everything(AMD)).len(), 10 + 6 + 31);
        for vendor in [AMD, HYGON, INTEL] {
            assert_eq!(left(third_of_four(vendor).as_slice()), [""; 0]);
        }
    }

    #[test]
    fn all_other_features_stay() {
        let mut entries = everything(INTEL);
        hide(&mut entries);
        let whole = |function, index| leaf(&entries, function, index).copied();
        for place in [(0x19, 0), (0x8000_0021, 0), (0x7, 2), (0xd, 2), (0xd, 9)] {
            assert_eq!(whole(place.0, place.1), Some(all_ones(place)));
        }
        assert_eq!(
            whole(0xd, 0).unwrap().eax,
            !(1 << 8 | 1 << 11 | 1 << 12 | 1 << 15 | 1 << 17 | 1 << 18)
        );
        let features = whole(FEATURES, 0).unwrap();
        assert_eq!((features.eax, features.ebx), (!0, !0));
        assert_eq!(features.ecx.count_zeros(), 4);
        let again = entries.clone();
        hide(&mut entries);
        assert_eq!(entries, again);
    }

    #[test]
    fn all_leaves_have_one_topology() {
        for vendor in [AMD, HYGON] {
            let table = third_of_four(vendor);
            assert_eq!(leaf_of(&table, SIZES, 0).unwrap().ecx, 3 | 2 << 12);
            assert_eq!(leaf_of(&table, AMD_TOPOLOGY, 0).unwrap().eax, 2);
            let features = leaf_of(&table, AMD_FEATURES, 0).unwrap();
            assert_eq!(features.ecx & AMD_ECX_CMP_LEGACY, AMD_ECX_CMP_LEGACY);
        }
        for vendor in [AMD, HYGON, INTEL] {
            let table = third_of_four(vendor);
            let features = leaf_of(&table, FEATURES, 0).unwrap();
            assert_eq!(features.ebx >> 16, 0x0204);
            assert_ne!(features.ecx & ECX_HYPERVISOR, 0);
            let (threads, cores) = (
                leaf_of(&table, INTEL_TOPOLOGY, 0).unwrap(),
                leaf_of(&table, INTEL_TOPOLOGY, 1).unwrap(),
            );
            assert_eq!(
                (threads.eax, threads.ebx, threads.ecx, threads.edx),
                (0, 1, 0x100, 2)
            );
            assert_eq!(
                (cores.eax, cores.ebx, cores.ecx, cores.edx),
                (2, 4, 0x201, 2)
            );
            assert_eq!(leaf_of(&table, INTEL_CACHES, 0).unwrap().eax >> 26, 3);
            assert_eq!(leaf_of(&table, INTEL_TOPOLOGY_V2, 0), None);
            assert_eq!(leaf_of(&table, AMD_TOPOLOGY_V2, 0), None);
        }
    }

    #[test]
    fn intels_table_has_nothing_in_amds_leaves() {
        let table = third_of_four(INTEL);
        let features = leaf_of(&table, AMD_FEATURES, 0).unwrap();
        assert_eq!(features.ecx & AMD_ECX_CMP_LEGACY, 0);
        assert_eq!(leaf_of(&table, SIZES, 0).unwrap().ecx, 0);
    }
}
