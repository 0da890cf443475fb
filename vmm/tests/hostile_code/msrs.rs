//! MSRs: those of the ranges in which processors and KVM have some, with values that they may not take, and random ones.

use minivm_tests::stress::{self, Random};
use minivm_vmm::{Error, Outcome, Reset};

use super::driver::{Access, Done, Kind, drive};

/// The ranges: Intel's first ones, those of memory types, of machine checks and VMX, of power, of x2APIC; AMD's; KVM's and Hyper-V's.
const RANGES: [std::ops::Range<u64>; 11] = [
    0..0x200,
    0x200..0x300,
    0x400..0x500,
    0x600..0x700,
    0x800..0x900,
    0xc000_0000..0xc000_0100,
    0xc000_0100..0xc000_0200,
    0xc001_0000..0xc001_0200,
    0xc001_1000..0xc001_1100,
    0x4b56_4d00..0x4b56_4d09,
    0x4000_0000..0x4000_0100,
];

/// A page that KVM may write to, with the bit that makes it do so.
const PAGE: u64 = 0x30_0001 + (56 << 20);

/// Sets MSRs, guest after guest: one that ends a guest is the last that this guest sets. Returns how many were set or read, how many
/// faulted, and how many ended their guests.
fn set(accesses: &[Access]) -> [usize; 3] {
    let [mut taken, mut faulted, mut ended] = [0; 3];
    let mut rest = accesses;
    while !rest.is_empty() {
        let driven = drive(rest);
        let reached = driven
            .done
            .iter()
            .take_while(|done| **done != Done::NotReached)
            .count();
        for done in &driven.done {
            taken += usize::from(matches!(done, Done::Value(_)));
            faulted += usize::from(*done == Done::Faulted);
        }
        match driven.outcome {
            Ok(Outcome::Reboot(Reset::Line)) => assert_eq!(reached, rest.len()),
            Ok(Outcome::TripleFault | Outcome::Stuck)
            | Err(Error::Exit { .. } | Error::Kvm { .. }) => {
                println!("{:x?}: {:?}", rest.get(reached), driven.outcome);
                ended += 1;
            }
            other => panic!("{:x?}: {other:?}", rest.get(reached)),
        }
        rest = &rest[(reached + 1).min(rest.len())..];
    }
    [taken, faulted, ended]
}

fn written(at: u64, value: u64) -> Access {
    Access {
        kind: Kind::SetMsr,
        at,
        value,
    }
}

#[test]
fn msrs_of_the_known_ranges_are_set_or_fault() {
    let values = [0, 1, 0x5555_5555_5555_5555, u64::MAX, 1 << 63, PAGE];
    let of_one = |at: u64| {
        let read = Access {
            kind: Kind::GetMsr,
            at,
            value: 0,
        };
        [read]
            .into_iter()
            .chain(values.map(|value| written(at, value)))
    };
    let accesses: Vec<_> = RANGES.into_iter().flatten().flat_map(of_one).collect();
    let [taken, faulted, ended] = set(&accesses);
    assert!(
        taken > 100 && faulted > 100,
        "{taken} were taken, and {faulted} faulted"
    );
    assert!(ended < 20, "{ended} guests were ended by an MSR");
}

#[test]
fn random_msrs_are_set_or_fault() {
    let mut random = Random::default();
    let accesses: Vec<_> = (0..stress::count(1000, 10_000))
        .map(|_| {
            let range = &RANGES[random.below(RANGES.len())];
            let length = usize::try_from(range.end - range.start).unwrap();
            let at = match random.below(4) {
                0 => random.number() & 0xffff_ffff,
                _ => range.start + random.below(length) as u64,
            };
            let value = match random.below(4) {
                0 => random.number() & 0xff,
                1 => 1 << random.below(64),
                2 => random.number() & 0xffff_ffff,
                _ => random.number(),
            };
            written(at, value)
        })
        .collect();
    let [taken, faulted, _] = set(&accesses);
    assert!(
        taken > 10 && faulted > 10,
        "{taken} were taken, and {faulted} faulted"
    );
}
