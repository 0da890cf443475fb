//! Every page of the holes in guest memory.

use minivm_tests::stress;
use minivm_vmm::{Outcome, Reset, layout};

use super::driver::{Access, Done, Kind, OF_MEMORY, drive};

const PAGE: u64 = 4096;
/// The first address behind the guest's memory.
const MEMORY_END: u64 = 64 << 20;
/// The three pages that KVM keeps on Intel's processors, to emulate real mode, and its page for the identity map beside them: the
/// guest sees them.
const OF_KVM: std::ops::Range<u64> = 0xfffb_c000..0xfffc_0000;

/// Reads and writes of every width at an address. All ones leave each entry of the IOAPIC masked.
fn accesses(at: u64) -> impl Iterator<Item = Access> {
    let both = OF_MEMORY.map(|width| [Kind::Load(width), Kind::Store(width)]);
    both.into_iter().flatten().map(move |kind| Access {
        kind,
        at,
        value: u64::MAX,
    })
}

/// Returns whether an address has registers, which read as they like.
fn has_registers(at: u64) -> bool {
    let of = |first: u64| (first.saturating_sub(8)..first + PAGE).contains(&at);
    of(layout::IOAPIC.0) || of(layout::LOCAL_APIC.0) || (OF_KVM.start - 8..OF_KVM.end).contains(&at)
}

/// Makes accesses at these addresses, and checks that all went through, and that nothing reads as ones.
fn check(addresses: impl Iterator<Item = u64>) {
    let accesses: Vec<_> = addresses.flat_map(accesses).collect();
    for accesses in accesses.chunks(1_000_000) {
        let driven = drive(accesses);
        assert_eq!(driven.outcome.unwrap(), Outcome::Reboot(Reset::Line));
        for (access, done) in accesses.iter().zip(driven.done) {
            let Done::Value(value) = done else {
                panic!("{access:x?}: {done:?}");
            };
            if let Kind::Load(width) = access.kind
                && !has_registers(access.at)
            {
                assert_eq!(value & width.mask(), width.mask(), "{access:x?}");
            }
        }
    }
}

#[test]
fn each_hole_can_be_touched() {
    // Of the hole below 4 GiB a page in each 2 MiB, or all; the interrupt controllers' pages and KVM's; and what lies behind RAM.
    let hole = (layout::HOLE.0..layout::ABOVE_HOLE.0).step_by(stress::count(2 << 20, 4096));
    let controllers = [layout::IOAPIC.0, layout::LOCAL_APIC.0];
    let controllers = controllers
        .into_iter()
        .flat_map(|page| (page - PAGE..page + 2 * PAGE).step_by(0x800));
    let of_kvm = (OF_KVM.start - PAGE..OF_KVM.end + PAGE).step_by(4096);
    let behind = [
        MEMORY_END,
        1 << 30,
        layout::HOLE.0 - 8,
        1 << 32,
        (1 << 39) - 8,
    ];
    check(hole.chain(controllers).chain(of_kvm).chain(behind));
}

#[test]
fn an_access_may_lie_across_any_two_pages_or_registers() {
    let pages = [
        layout::HOLE.0,
        layout::IOAPIC.0,
        layout::IOAPIC.0 + PAGE,
        layout::LOCAL_APIC.0,
    ];
    let across = pages
        .into_iter()
        .flat_map(|page| (1..8).map(move |before| page - before));
    let registers = layout::IOAPIC.0..layout::IOAPIC.0 + 0x30;
    check(across.chain(registers));
}
