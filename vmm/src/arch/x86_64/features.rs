//! Whether this host can go on with a guest that has seen another host's CPUID.
//!
//! A guest asks CPUID once, when it boots, and then uses what it was told of. So a host that restores it needs every
//! feature that the guest has seen, whether the guest uses it or not; more features are no harm, since the guest keeps the
//! CPUID table that it had. Numbers (sizes of caches, addresses' widths) are not compared.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// The registers of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

impl Register {
    fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Eax => entry.eax,
            Ebx => entry.ebx,
            Ecx => entry.ecx,
            Edx => entry.edx,
        }
    }
}

/// A register whose bits are features.
struct Word {
    function: u32,
    index: u32,
    register: Register,
    /// Bits that tell of the vCPU's state or of the machine's shape, or that KVM gives by other means than CPUID.
    exempt: u32,
    /// Linux's names for the bits, from bit 0 on; `-` where there is none.
    names: &'static str,
}

/// (Intel SDM vol. 2, "CPUID"; AMD APM vol. 3, appendix E; `Documentation/virt/kvm/x86/cpuid.rst`; names as in
/// `arch/x86/include/asm/cpufeatures.h`.)
const WORDS: [Word; 14] = [
    Word {
        function: 0x1,
        index: 0,
        register: Ecx,
        // monitor, tsc_deadline_timer (compared by itself), osxsave, hypervisor
        exempt: 1 << 3 | 1 << 24 | 1 << 27 | 1 << 31,
        names: "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 \
                sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    },
    Word {
        function: 0x1,
        index: 0,
        register: Edx,
        // apic, ht
        exempt: 1 << 9 | 1 << 28,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse \
                sse2 ss ht tm ia64 pbe",
    },
    Word {
        function: 0x6,
        index: 0,
        register: Eax,
        exempt: 0,
        names: "dtherm ida arat",
    },
    Word {
        function: 0x7,
        index: 0,
        register: Ebx,
        exempt: 0,
        names: "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a \
                avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni \
                avx512bw avx512vl",
    },
    Word {
        function: 0x7,
        index: 0,
        register: Ecx,
        // ospke
        exempt: 1 << 4,
        names: "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme \
                avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    },
    Word {
        function: 0x7,
        index: 0,
        register: Edx,
        exempt: 0,
        names: "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - \
                tsx_force_abort serialize hybrid tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 \
                spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd",
    },
    Word {
        function: 0x7,
        index: 1,
        register: Eax,
        exempt: 0,
        names: "sha512 sm3 sm4 - avx_vnni avx512_bf16",
    },
    Word {
        function: 0xd,
        index: 0,
        register: Eax,
        exempt: 0,
        names: "x87-state sse-state avx-state bndregs-state bndcsr-state avx512-opmask-state avx512-zmm-state \
                avx512-hi16-zmm-state - pkru-state",
    },
    Word {
        function: 0xd,
        index: 1,
        register: Eax,
        exempt: 0,
        names: "xsaveopt xsavec xgetbv1 xsaves xfd",
    },
    Word {
        function: 0x4000_0001,
        index: 0,
        register: Eax,
        exempt: 0,
        names: "kvm-clock kvm-nopiodelay kvm-mmu kvm-clock2 kvm-async-pf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt - \
                kvm-pv-tlb-flush kvm-async-pf-vmexit kvm-pv-send-ipi kvm-poll-control kvm-pv-sched-yield kvm-async-pf-int \
                kvm-msi-ext-dest-id kvm-hc-map-gpa-range kvm-migration-control - - - - - - kvm-clock-stable",
    },
    Word {
        function: 0x8000_0001,
        index: 0,
        register: Ecx,
        // cmp_legacy
        exempt: 1 << 1,
        names: "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp \
                fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    },
    Word {
        function: 0x8000_0001,
        index: 0,
        register: Edx,
        // apic, as in leaf 1
        exempt: 1 << 9,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr \
                fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    },
    Word {
        function: 0x8000_0007,
        index: 0,
        register: Edx,
        exempt: 0,
        names: "- - - - - - - - constant_tsc",
    },
    Word {
        function: 0x8000_0008,
        index: 0,
        register: Ebx,
        exempt: 0,
        names: "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - amd_stibp_always_on - - \
                - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc",
    },
];

/// The leaf with the vendor's name.
const VENDOR: u32 = 0x0;
const FEATURES: u32 = 0x1;
const ECX_TSC_DEADLINE: u32 = 1 << 24;

/// Finds the first thing that a guest with the table `seen` needs and that a host lacks whose KVM supports `supported`, and
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
    WORDS.iter().find_map(|word| {
        let bits = |table| {
            leaf(table, word.function, word.index).map_or(0, |entry| word.register.of(entry))
        };
        let lacking = bits(seen) & !bits(host) & !word.exempt;
        (lacking != 0).then(|| word.name(lacking.trailing_zeros()))
    })
}

impl Word {
    fn name(&self, bit: u32) -> String {
        let name = usize::try_from(bit)
            .ok()
            .and_then(|bit| self.names.split_ascii_whitespace().nth(bit));
        match name {
            Some(name) if name != "-" => name.into(),
            _ => {
                let register = format!("{:?}", self.register).to_uppercase();
                format!(
                    "bit {bit} of CPUID {:#x}.{} {register}",
                    self.function, self.index
                )
            }
        }
    }
}

fn leaf(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    table
        .iter()
        .find(|entry| (entry.function, entry.index) == (function, index))
}

/// The vendor's name as the processor spells it, `GenuineIntel` or `AuthenticAMD`.
fn vendor(table: &[kvm_cpuid_entry2]) -> String {
    let entry = leaf(table, VENDOR, 0).copied().unwrap_or_default();
    let bytes = [entry.ebx, entry.edx, entry.ecx]
        .map(u32::to_le_bytes)
        .concat();
    bytes.escape_ascii().to_string()
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
    fn what_is_no_feature_is_not_missed() {
        assert_eq!(missing_with(|e| e.ecx = 1 << 31 | 1 << 27, 0x1, 0), None);
        assert_eq!(missing_with(|e| e.edx = 1 << 28, 0x1, 0), None);
        assert_eq!(missing_with(|e| e.eax = !0, 0x8000_0008, 0), None);
    }

    #[test]
    fn no_word_has_more_names_than_bits() {
        for word in &WORDS {
            assert!(
                word.names.split_ascii_whitespace().count() <= 32,
                "{:#x}",
                word.function
            );
        }
    }
}
