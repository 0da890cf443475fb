//! The check that this host can continue a guest that has seen another host's CPUID.
//!
//! A guest asks CPUID once, when it boots, and then uses the features that it found. So a host that restores it needs every
//! feature that the guest has seen, whether the guest uses it or not; more features are no harm, since the guest keeps the
//! CPUID table that it had.
//!
//! All registers of all leaves are taken for features, a bit each, also of leaves that are unknown here. Bits that are no
//! features are exempt, each with its reason ([`exempt`]), or are compared by their meaning: the vendor, widths of addresses,
//! the layout of the extended state, the version of AVX10.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::cpuid::{Eax, Ebx, Ecx, Edx, FEATURES, Register, SIZES, XSAVE, leaf, vendor};

/// A line for each register whose bits have names.
const NAMES: &str = include_str!("features.txt");

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const AVX10: u32 = 0x24;
const ALL: u32 = !0;

/// Returns the bits of a register that are no features, or that are compared otherwise.
fn exempt(function: u32, index: u32, register: Register) -> u32 {
    match (function, index, register) {
        // The largest leaf, and the vendor's or the hypervisor's name.
        (0x0 | 0x4000_0000 | 0x8000_0000, ..) => ALL,
        // Family, model and stepping: a guest that knows its model's errata keeps avoiding them. Size of a cache line, APIC ID.
        (0x1, _, Eax | Ebx) | (0x8000_0001, _, Eax | Ebx) => ALL,
        // monitor and osxsave (the vCPU's state), tsc_deadline_timer (compared by itself), hypervisor (ours).
        (0x1, _, Ecx) => 1 << 3 | 1 << 24 | 1 << 27 | 1 << 31,
        // apic (the vCPU's state), ht (the machine's shape).
        (0x1, _, Edx) => 1 << 9 | 1 << 28,
        // Caches, the processor's serial number.
        (0x2..=0x4, ..) => ALL,
        // MONITOR's sizes: KVM makes its instructions do nothing.
        (0x5, ..) => ALL,
        // Numbers of thermal thresholds and classes.
        (0x6, _, Ebx | Edx) => ALL,
        // The largest subleaf.
        (0x7 | 0x14 | 0x20 | 0x24, 0, Eax) => ALL,
        // ospke: the vCPU's state.
        (0x7, 0, Ecx) => 1 << 4,
        // Counters, enclaves' sizes, traces, branch records, tiles, nested virtualization, sampling: hidden from every guest.
        (0xa | 0x12 | 0x14 | 0x1c | 0x1d | 0x1e | 0x23, ..) => ALL,
        (0x8000_000a | 0x8000_001b | 0x8000_0022, ..) => ALL,
        // Topology, which is the machine's own.
        (0xb | 0x1f | 0x8000_001e | 0x8000_0026, ..) => ALL,
        // Sizes of the extended state as it is switched on and as it could be; its parts' layouts are compared by themselves.
        (0xd, 0, Ebx | Ecx) | (0xd, 1, Ebx) | (0xd, 2.., _) => ALL,
        // Frequencies: the time stamp counter's is compared when it is set.
        (0x15 | 0x16 | 0x4000_0010, ..) => ALL,
        // The chip's name, address translation caches, which kind of core it is.
        (0x17 | 0x18 | 0x1a, ..) => ALL,
        // AVX10's version is compared by itself.
        (AVX10, 0, Ebx) => 0xff,
        // Hints of how a guest is best run.
        (0x4000_0001, _, Edx) => ALL,
        // cmp_legacy: the machine's shape.
        (0x8000_0001, _, Ecx) => 1 << 1,
        // apic, as in leaf 1.
        (0x8000_0001, _, Edx) => 1 << 9,
        // The processor's name, caches.
        (0x8000_0002..=0x8000_0006 | 0x8000_0019 | 0x8000_001d, ..) => ALL,
        // Numbers for the power's management.
        (0x8000_0007, _, Eax | Ecx) => ALL,
        // Widths of addresses are compared by themselves; topology; how much INVLPGB takes.
        (SIZES, _, Eax | Ecx | Edx) => ALL,
        // How quick some instructions are.
        (0x8000_001a, ..) => ALL,
        // Encrypted memory's numbers.
        (0x8000_001f, _, Ebx | Ecx | Edx) => ALL,
        // Sizes of the microcode's patches and the like.
        (0x8000_0021, _, Ebx | Edx) => ALL,
        _ => 0,
    }
}

/// Returns the first feature that a guest with the table `seen` needs and that a host lacks whose KVM supports `supported`, and
/// perhaps a local APIC timer with deadlines.
pub(crate) fn missing(
    seen: &[kvm_cpuid_entry2],
    supported: &CpuId,
    tsc_deadline: bool,
) -> Option<String> {
    let host = supported.as_slice();
    if vendor(seen) != vendor(host) {
        return Some(format!("processor made by {}", vendor(seen)));
    }
    let deadline = leaf(seen, FEATURES, 0).is_some_and(|entry| entry.ecx & ECX_TSC_DEADLINE != 0);
    if deadline && !tsc_deadline {
        return Some("tsc_deadline_timer".into());
    }
    let features = seen.iter().find_map(|entry| missing_bit(entry, host));
    features
        .or_else(|| narrower(seen, host))
        .or_else(|| seen.iter().find_map(|entry| other_layout(entry, host)))
        .or_else(|| older_avx10(seen, host))
}

/// Returns the first feature of a leaf that the host lacks.
fn missing_bit(seen: &kvm_cpuid_entry2, host: &[kvm_cpuid_entry2]) -> Option<String> {
    let (function, index) = (seen.function, seen.index);
    let same = leaf(host, function, index).copied().unwrap_or_default();
    Register::ALL.into_iter().find_map(|register| {
        let wanted = register.of(seen) & !exempt(function, index, register);
        let lacking = wanted & !register.of(&same);
        (lacking != 0).then(|| name(function, index, register, lacking.trailing_zeros()))
    })
}

/// Returns addresses that are too narrow. A guest may use every bit that it has seen, also those that must otherwise be 0.
fn narrower(seen: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Option<String> {
    let bits =
        |table, shift: u32| leaf(table, SIZES, 0).map_or(0, |entry| entry.eax >> shift & 0xff);
    [(0, "physical"), (8, "linear")]
        .into_iter()
        .find_map(|(shift, what)| {
            let (wanted, there) = (bits(seen, shift), bits(host, shift));
            (wanted > there).then(|| format!("{what} addresses of {wanted} bits (it has {there})"))
        })
}

/// Returns a part of the extended state that has another layout: the state is saved as the processor lays it out.
fn other_layout(seen: &kvm_cpuid_entry2, host: &[kvm_cpuid_entry2]) -> Option<String> {
    if seen.function != XSAVE || seen.index < 2 || seen.eax == 0 {
        return None;
    }
    let same = leaf(host, XSAVE, seen.index).copied().unwrap_or_default();
    let layout = |entry: &kvm_cpuid_entry2| (entry.eax, entry.ebx, entry.ecx);
    (layout(seen) != layout(&same)).then(|| {
        format!(
            "part {} of the extended state of {} bytes at {:#x}",
            seen.index, seen.eax, seen.ebx
        )
    })
}

fn older_avx10(seen: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Option<String> {
    let version = |table| leaf(table, AVX10, 0).map_or(0, |entry| entry.ebx & 0xff);
    let wanted = version(seen);
    (wanted > version(host)).then(|| format!("avx10.{wanted}"))
}

/// Returns the name of a bit.
fn name(function: u32, index: u32, register: Register, bit: u32) -> String {
    let register = format!("{register:?}").to_uppercase();
    let register = format!("{function:#x}.{index} {register}");
    let names = NAMES.lines().find_map(|line| line.strip_prefix(&register));
    let mut names = names.unwrap_or_default().split_ascii_whitespace();
    match usize::try_from(bit).ok().and_then(|bit| names.nth(bit)) {
        Some(name) if name != "-" => name.into(),
        _ => format!("bit {bit} of CPUID {register}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        }
    }

    fn missing_with(
        change: impl FnOnce(&mut kvm_cpuid_entry2),
        function: u32,
        index: u32,
    ) -> Option<String> {
        let mut seen = entry(function, index);
        change(&mut seen);
        let host = CpuId::from_entries(&[entry(function, index)]).unwrap();
        missing(&[seen], &host, false)
    }

    #[test]
    fn a_missing_feature_is_named() {
        assert_eq!(
            missing_with(|e| e.ebx = 1 << 5, 0x7, 0).as_deref(),
            Some("avx2")
        );
        assert_eq!(
            missing_with(|e| e.ecx = 1 << 28, 0x1, 0).as_deref(),
            Some("avx")
        );
        assert_eq!(
            missing_with(|e| e.edx = 1 << 20, 0x8000_0001, 0).as_deref(),
            Some("nx")
        );
        assert_eq!(
            missing_with(|e| e.eax = 1 << 24, 0x4000_0001, 0).as_deref(),
            Some("kvm-clock-stable")
        );
        assert_eq!(
            missing_with(|e| e.ecx = 1 << 24, 0x1, 0).as_deref(),
            Some("tsc_deadline_timer")
        );
        assert_eq!(
            missing_with(|e| e.eax = 1 << 31, 0x7, 1).as_deref(),
            Some("bit 31 of CPUID 0x7.1 EAX")
        );
        let amd = |e: &mut kvm_cpuid_entry2| {
            (e.ebx, e.edx, e.ecx) = (0x6874_7541, 0x6974_6e65, 0x444d_4163);
        };
        assert_eq!(
            missing_with(amd, 0x0, 0).as_deref(),
            Some("processor made by AuthenticAMD")
        );
    }

    #[test]
    fn bits_that_are_no_features_are_not_compared() {
        assert_eq!(missing_with(|e| e.ecx = 1 << 31 | 1 << 27, 0x1, 0), None);
        assert_eq!(missing_with(|e| e.edx = 1 << 28, 0x1, 0), None);
        assert_eq!(missing_with(|e| e.ecx = !0, 0x8000_0008, 0), None);
        for register in [Eax, Ebx, Ecx, Edx] {
            for leaf in [0x2, 0x4, 0xb, 0x8000_0002, 0x8000_0006, 0x8000_001e] {
                assert_eq!(exempt(leaf, 0, register), ALL, "{leaf:#x}");
            }
        }
    }

    #[test]
    fn no_register_has_more_names_than_bits() {
        let registers = NAMES.lines().filter(|line| !line.starts_with('#'));
        for register in registers {
            assert!(
                register.split_ascii_whitespace().count() <= 2 + 32,
                "{register}"
            );
        }
    }

    #[test]
    fn every_word_that_is_not_exempt_is_compared() {
        let lacks = |change: fn(&mut kvm_cpuid_entry2), function, index, name: &str| {
            let missed = missing_with(change, function, index);
            assert_eq!(missed.as_deref(), Some(name), "{function:#x}.{index}");
        };
        lacks(|e| e.ecx = 1 << 5, 0x7, 1, "bit 5 of CPUID 0x7.1 ECX");
        lacks(|e| e.edx = 1 << 4, 0x7, 1, "avx_vnni_int8");
        lacks(|e| e.edx = 1 << 4, 0x7, 2, "bhi_ctrl");
        lacks(|e| e.edx = 1, 0xd, 0, "bit 0 of CPUID 0xd.0 EDX");
        lacks(|e| e.ecx = 1 << 11, 0xd, 1, "bit 11 of CPUID 0xd.1 ECX");
        lacks(|e| e.edx = 1, 0xd, 1, "bit 0 of CPUID 0xd.1 EDX");
        lacks(|e| e.ebx = 1 << 18, 0x24, 0, "bit 18 of CPUID 0x24.0 EBX");
        lacks(|e| e.eax = 1 << 8, 0x8000_0021, 0, "autoibrs");
        lacks(
            |e| e.ebx = 1 << 1,
            0x8000_0007,
            0,
            "bit 1 of CPUID 0x80000007.0 EBX",
        );
        // A leaf that is unknown here.
        lacks(|e| e.ebx = 1 << 7, 0x2f, 3, "bit 7 of CPUID 0x2f.3 EBX");
    }

    #[test]
    fn numbers_that_matter_are_compared_as_numbers() {
        let compared = |seen: kvm_cpuid_entry2, host: kvm_cpuid_entry2| {
            missing(&[seen], &CpuId::from_entries(&[host]).unwrap(), false)
        };
        let sizes = |eax| kvm_cpuid_entry2 {
            eax,
            ..entry(0x8000_0008, 0)
        };
        let lacking = compared(sizes(0x3034), sizes(0x3030)).unwrap();
        assert_eq!(lacking, "physical addresses of 52 bits (it has 48)");
        let lacking = compared(sizes(0x392e), sizes(0x3034)).unwrap();
        assert_eq!(lacking, "linear addresses of 57 bits (it has 48)");
        assert_eq!(compared(sizes(0x302e), sizes(0x3934)), None);
        let part = |eax, ebx| kvm_cpuid_entry2 {
            eax,
            ebx,
            ..entry(0xd, 9)
        };
        let lacking = compared(part(8, 0xa80), part(8, 0x980)).unwrap();
        assert_eq!(lacking, "part 9 of the extended state of 8 bytes at 0xa80");
        assert_eq!(compared(part(8, 0xa80), part(8, 0xa80)), None);
        assert_eq!(compared(part(0, 0), part(8, 0xa80)), None);
        let avx10 = |ebx| kvm_cpuid_entry2 {
            ebx,
            ..entry(0x24, 0)
        };
        let lacking = compared(avx10(2 | 7 << 16), avx10(1 | 7 << 16)).unwrap();
        assert_eq!(lacking, "avx10.2");
        assert_eq!(compared(avx10(1 | 1 << 16), avx10(2 | 7 << 16)), None);
    }
}
