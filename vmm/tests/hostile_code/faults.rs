//! Triple faults at each step of a boot, and code where there is none.

use std::io::{self, Write};

use minivm_tests::code::{map, place, wake};
use minivm_tests::output::Shared;
use minivm_vmm::{Builder, Config, Error, Kernel, Outcome, Reset, Result, layout};

use super::run_to_end;

/// `ud2`.
const INVALID: [u8; 2] = [0x0f, 0x0b];
const HALT: [u8; 2] = [0xfa, 0xf4];

/// Runs code with two vCPUs; returns the outcome and the output to COM1.
fn run(code: &[&[u8]]) -> (Result<Outcome>, Vec<u8>) {
    let output = Shared::default();
    let config = Config {
        memory: 64 << 20,
        cpus: 2,
        ..Config::new(Kernel::Code(code.concat()))
    };
    let machine = Builder::new(config).console_output(output.clone());
    (run_to_end(machine.build().unwrap()), output.bytes())
}

/// `mov dword [address], value` for each.
fn stores(pairs: &[(u32, u32)]) -> Vec<u8> {
    let store = |(address, value): &(u32, u32)| {
        [
            &[0xc7, 0x04, 0x25][..],
            &address.to_le_bytes(),
            &value.to_le_bytes(),
        ]
        .concat()
    };
    pairs.iter().flat_map(store).collect()
}

/// Sets the IOAPIC's entry of COM1: masked, or not.
fn route(masked: bool) -> Vec<u8> {
    let ioapic = u32::try_from(layout::IOAPIC.0).unwrap();
    let select = [0xbe, 0x18, 0, 0, 0]; // mov esi, the entry's register
    let value = u32::from(masked) << 16 | 0x31;
    [
        &select[..],
        &[0xb8], // mov eax, the IOAPIC
        &ioapic.to_le_bytes(),
        &[0x89, 0x30],       // mov [rax], esi
        &[0xc7, 0x40, 0x10], // mov dword [rax + 0x10], value
        &value.to_le_bytes(),
    ]
    .concat()
}

/// Loads an interrupt descriptor table of 64 entries at 0x11000: gates to an address, or none that is present.
fn gates(to: Option<u32>) -> Vec<u8> {
    let gate = |index: u32| {
        let (at, to) = (0x1_1000 + 16 * index, to?);
        Some([
            (at, to & 0xffff | 0x10 << 16),
            (at + 4, 0x8e00 | to & 0xffff_0000),
        ])
    };
    let table: Vec<_> = (0..64).filter_map(gate).flatten().collect();
    // The limit 0x3ff and the address 0x11000, and `lidt [0x10000]`.
    let pointer = stores(&[(0x1_0000, 0x1000_03ff), (0x1_0004, 1)]);
    let load = [0x0f, 0x01, 0x1c, 0x25, 0, 0, 1, 0];
    [stores(&table), pointer, load.to_vec()].concat()
}

#[test]
fn a_triple_fault_ends_the_machine_at_each_step_of_a_boot() {
    let crashed = Outcome::TripleFault;
    let panicked = Outcome::Panic(Reset::TripleFault);
    let rebooted = Outcome::Reboot(Reset::TripleFault);
    let ioapic = map(layout::IOAPIC.0);
    let used = [&ioapic[..], &route(false)].concat();
    let steps: [(&str, Vec<u8>, Outcome); 9] = [
        ("at the first instruction", INVALID.to_vec(), crashed),
        (
            "with page tables that map nothing",
            vec![0xb8, 0x00, 0x30, 0x02, 0x00, 0x0f, 0x22, 0xd8], // mov eax, 0x23000; mov cr3, rax
            crashed,
        ),
        (
            "with handlers where nothing is mapped",
            [&gates(Some(0x7000_0000))[..], &INVALID].concat(),
            crashed,
        ),
        (
            "with no stack for a handler",
            // mov esp, 0x70000000
            [
                &gates(Some(0x10_0000))[..],
                &[0xbc, 0, 0, 0, 0x70],
                &INVALID,
            ]
            .concat(),
            crashed,
        ),
        (
            "at a page fault with no handler",
            // mov eax, [0x70000000]
            [&gates(None)[..], &[0x8b, 0x04, 0x25, 0, 0, 0, 0x70]].concat(),
            crashed,
        ),
        (
            "on the second processor, in real mode",
            // lidt of six zeros at 0x30020, as DS is 0x3000; ud2
            [
                &map(layout::LOCAL_APIC.0)[..],
                &place(
                    0x3_0000,
                    &[
                        0x8c, 0xc8, 0x8e, 0xd8, 0x0f, 0x01, 0x1e, 0x20, 0x00, 0x0f, 0x0b,
                    ],
                ),
                &wake(0x30),
                &HALT,
            ]
            .concat(),
            crashed,
        ),
        (
            "with an interrupt in use",
            [&used[..], &INVALID].concat(),
            panicked,
        ),
        (
            "after it has given its interrupts up",
            [&used[..], &route(true), &INVALID].concat(),
            rebooted,
        ),
        (
            "after a second start of its interrupts",
            [&used[..], &route(true), &route(false), &INVALID].concat(),
            panicked,
        ),
    ];
    for (when, code, expected) in steps {
        let (outcome, output) = run(&[&code]);
        match outcome {
            // A KVM that emulates real mode may not know `ud2` there.
            Err(Error::Exit { vcpu: 1, .. }) => assert!(code.ends_with(&HALT), "{when}"),
            outcome => assert_eq!(outcome.unwrap(), expected, "{when}"),
        }
        assert_eq!(output, b"", "{when}");
    }
}

#[test]
fn a_string_that_runs_out_of_memory_has_written_what_came_before() {
    let say = [
        0xbe, 0xf8, 0xff, 0xff, 0x3f, // mov esi, 8 bytes before the end of what is mapped
        0xb9, 0x64, 0, 0, 0, // mov ecx, 100
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xf3, 0x6e, // rep outsb
    ];
    let (outcome, output) = run(&[&say]);
    assert_eq!(outcome.unwrap(), Outcome::TripleFault);
    // That is behind this machine's RAM.
    assert_eq!(output, [0xff; 8]);
}

#[test]
fn code_where_no_memory_is_ends_the_machine() {
    let places = [
        ("behind memory", 64_u32 << 20),
        ("in the hole", 0xd000_0000),
        ("in the IOAPIC", 0xfec0_0000),
    ];
    for (place, address) in places {
        let jump = [&[0xb8][..], &address.to_le_bytes(), &[0xff, 0xe0]].concat(); // mov eax, address; jmp rax
        let (outcome, _) = run(&[&map(address.into()), &jump]);
        match outcome {
            Err(error @ Error::Exit { vcpu: 0, .. }) => {
                assert!(!error.to_string().contains('\n'), "{error}");
            }
            // A KVM that reads instructions as a device's registers reads ones, which are none.
            other => assert_eq!(other.unwrap(), Outcome::TripleFault, "{place}"),
        }
    }
}

#[test]
fn an_output_that_fails_ends_the_machine_at_any_byte() {
    struct Fails(usize);
    impl Write for Fails {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // mov esi, 0x100000; mov ecx, 64; mov dx, 0x3f8; rep outsb; out dx, al, for ever
    let code = [
        0xbe, 0, 0, 0x10, 0, 0xb9, 0x40, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e, 0xee, 0xeb,
        0xfd,
    ];
    for after in [0, 1, 63, 64, 100] {
        let config = Config::new(Kernel::Code(code.to_vec()));
        let machine = Builder::new(config)
            .console_output(Fails(after))
            .build()
            .unwrap();
        let outcome = run_to_end(machine);
        assert!(
            matches!(outcome, Err(Error::Output(_))),
            "{after}: {outcome:?}"
        );
    }
}
