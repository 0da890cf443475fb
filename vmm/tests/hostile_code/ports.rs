//! Every I/O port, with each width and as strings.

use minivm_tests::stress;
use minivm_vmm::{Outcome, Reset, layout};

use super::driver::{ACCESSES_MAX, Access, Done, Kind, OF_PORTS, STRING_BYTE, Width, drive};

/// A value none of whose parts ends a machine, at the keyboard controller's or ACPI's port.
const VALUE: u64 = 0x5a5a_5a5a;
const _: () = assert!(STRING_BYTE == 0x5a);

/// Returns whether a device has this port.
fn has_device(port: u64) -> bool {
    let coms = layout::UARTS.map(|(port, _)| u64::from(port));
    coms.iter().any(|com| (*com..com + 8).contains(&port))
        || port == u64::from(layout::I8042_COMMAND_PORT)
        || (u64::from(layout::ACPI_SLEEP_PORT)..)
            .take(2)
            .any(|sleep| sleep == port)
}

/// All accesses of all widths to these ports.
fn accesses(kinds: &[fn(Width) -> Kind], ports: impl Iterator<Item = u64>) -> Vec<Access> {
    let to_one = |at: u64| {
        kinds.iter().flat_map(move |kind| {
            OF_PORTS.map(|width| Access {
                kind: kind(width),
                at,
                value: VALUE,
            })
        })
    };
    ports.flat_map(to_one).collect()
}

/// Makes the accesses, and checks that all went through: what no device answers reads as ones, and a device answers alone at its
/// ports, however far an access reaches beyond them or into them.
fn check(accesses: &[Access]) {
    for accesses in accesses.chunks(ACCESSES_MAX) {
        let driven = drive(accesses);
        assert_eq!(driven.outcome.unwrap(), Outcome::Reboot(Reset::Line));
        for (access, done) in accesses.iter().zip(driven.done) {
            let Done::Value(value) = done else {
                panic!("{access:x?}: {done:?}");
            };
            match access.kind {
                Kind::In(width) | Kind::Ins(width) if !has_device(access.at) => {
                    assert_eq!(value & width.mask(), width.mask(), "{access:x?}");
                }
                Kind::Out(_) | Kind::Outs(_) => assert_eq!(value, VALUE, "{access:x?}"),
                _ => {}
            }
        }
    }
}

/// Ports with devices and around them, and of the others one in `few`, or all in a soak.
fn ports(few: u64) -> impl Iterator<Item = u64> {
    let step = stress::count(few, 1);
    let near = |port: u64| (port.saturating_sub(4)..port + 4).any(has_device);
    (0..0x1_0000).filter(move |port| near(*port) || port % step == 0)
}

#[test]
fn every_port_takes_writes_of_every_width() {
    check(&accesses(&[Kind::Out], ports(1)));
}

#[test]
fn ports_are_read_with_every_width_and_unused_ones_read_as_ones() {
    check(&accesses(&[Kind::In], ports(11)));
}

#[test]
fn ports_take_strings_of_every_width() {
    check(&accesses(&[Kind::Outs, Kind::Ins], ports(37)));
}
