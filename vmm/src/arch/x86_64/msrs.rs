//! A vCPU's model-specific registers: their list, and reading and setting them.
//!
//! KVM lists those that it keeps for a guest, but not all of them: it also keeps some that it does nothing with, and the
//! program that saves a guest has to know these, as QEMU does.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::error::{Error, Result};

/// Memory types (cached, uncached): the number of variable ranges, the first of them (two registers each), the fixed ranges,
/// and the default (Intel SDM vol. 3, "Memory Type Range Registers (MTRRs)").
const MTRR_CAPABILITIES: u32 = 0xfe;
const MTRR_VARIABLE: u32 = 0x200;
const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
const MTRR_DEFAULT: u32 = 0x2ff;
/// Banks of errors: their number, the first of them (four registers each), and their thresholds, where the tenth bit of
/// the first says that there are any (Intel SDM vol. 3, "Machine-Check MSRs").
const ERROR_CAPABILITIES: u32 = 0x179;
const HAS_THRESHOLDS: u64 = 1 << 10;
const ERROR_BANKS: u32 = 0x400;
const ERROR_THRESHOLDS: u32 = 0x280;
/// The most ranges or banks that a processor has.
const MANY: u32 = 32;
/// Other registers that a guest can write to and that some KVM doesn't list: SPEC_CTRL, DEBUGCTL, XSS (Intel SDM vol. 4),
/// TSC_AUX, DE_CFG and the two of OS-visible workarounds (AMD APM vol. 2, "Model-Specific Registers (MSRs)").
const OTHERS: [u32; 7] = [
    0x48,
    0x1d9,
    0xda0,
    0xc000_0103,
    0xc001_0140,
    0xc001_0141,
    0xc001_1029,
];

/// Reads all MSRs of a vCPU: those of `listed`, and those that aren't in any list.
pub(super) fn all(vcpu: &VcpuFd, listed: &[u32]) -> Result<Vec<kvm_msr_entry>> {
    let mut indices = listed.to_vec();
    let unlisted = OTHERS.into_iter().chain(MTRR_FIXED).chain([MTRR_DEFAULT]);
    indices.extend(unlisted.filter(|index| !listed.contains(index)));
    let mut all = read(vcpu, &indices)?;
    // A vCPU begins with zeros in them, and few guests use them.
    let ranges = read(vcpu, &ranges(vcpu)?)?;
    all.extend(
        ranges
            .into_iter()
            .filter(|msr| msr.data != 0 && !listed.contains(&msr.index)),
    );
    Ok(all)
}

/// Returns the MSRs of ranges and banks, whose number the processor reports.
fn ranges(vcpu: &VcpuFd) -> Result<Vec<u32>> {
    let one = |index| read(vcpu, &[index]).map(|read| read.first().map_or(0, |msr| msr.data));
    let (mtrrs, errors) = (one(MTRR_CAPABILITIES)?, one(ERROR_CAPABILITIES)?);
    let count = |capabilities: u64| u32::from(capabilities.to_le_bytes()[0]).min(MANY);
    let thresholds = match errors & HAS_THRESHOLDS {
        0 => 0,
        _ => count(errors),
    };
    let mut ranges: Vec<_> = (MTRR_VARIABLE..MTRR_VARIABLE + 2 * count(mtrrs)).collect();
    ranges.extend(ERROR_BANKS..ERROR_BANKS + 4 * count(errors));
    ranges.extend(ERROR_THRESHOLDS..ERROR_THRESHOLDS + thresholds);
    Ok(ranges)
}

/// Reads all MSRs of `indices` that can be read.
pub(super) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
    let mut read = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let wanted: Vec<_> = rest
            .iter()
            .take(KVM_MAX_MSR_ENTRIES)
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs = Msrs::from_entries(&wanted).expect("no more than KVM takes");
        // Reads them in order and stops at the first that can't be read; the number of those read is its result. One that
        // this KVM lists and then can't read has no state, and is left out. (KVM API 4.18, KVM_GET_MSRS.)
        let count = vcpu
            .get_msrs(&mut msrs)
            .map_err(Error::kvm("KVM_GET_MSRS"))?;
        read.extend(&msrs.as_slice()[..count]);
        let done = if count < wanted.len() {
            count + 1
        } else {
            count
        };
        rest = &rest[done..];
    }
    Ok(read)
}

/// Sets `msrs` in order. An MSR that can't be set is as good as set if it has the value already.
pub(super) fn set(vcpu: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<()> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let part = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let entries = Msrs::from_entries(part).expect("no more than KVM takes");
        let count = vcpu
            .set_msrs(&entries)
            .map_err(Error::kvm("KVM_SET_MSRS"))?;
        let Some(refused) = part.get(count) else {
            rest = &rest[part.len()..];
            continue;
        };
        let now = read(vcpu, &[refused.index])?;
        if now.first().map(|msr| msr.data) != Some(refused.data) {
            return Err(Error::HostLacks(format!(
                "MSR {:#x} that takes the value {:#x}",
                refused.index, refused.data
            )));
        }
        rest = &rest[count + 1..];
    }
    Ok(())
}
