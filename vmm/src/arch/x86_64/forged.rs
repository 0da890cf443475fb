//! Forged snapshots: the checksum is right, and the state is made up. Each is refused, or runs until it ends by itself or is
//! stopped. They need a `/dev/kvm`.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use kvm_bindings::{kvm_cpuid_entry2, kvm_msr_entry};
use minivm_tests::snapshot::save_in;
use minivm_tests::stress;
use tempfile::TempDir;

use super::{board, ioapic};
use crate::devices::uart;
use crate::snapshot::state::{Devices, State};
use crate::snapshot::{SaveFiles, Snapshot, file};
use crate::{Builder, Config, Error, Kernel, Outcome, Result};

/// The time after which a forged guest is stopped, and the limit for a hang.
const A_WHILE: Duration = Duration::from_millis(2);
const DEADLINE: Duration = Duration::from_secs(120);
/// The number of snapshots of each kind.
fn rounds() -> usize {
    stress::count(40, 4000)
}

/// A guest that writes to COM1 and COM3 and reads from them, for ever.
const GUEST: [u8; 13] = [
    0x66, 0xba, 0xf8, 0x03, // again: mov dx, 0x3f8
    0xee, 0xec, 0xb2, 0xe8, // out dx, al; in al, dx; mov dl, 0xe8
    0xee, 0xec, 0x90, //       out dx, al; in al, dx; nop
    0xeb, 0xf3, //             jmp again
];

/// A generator of pseudo-random numbers from the seed of a soak's round: most of them small or one bit.
struct Chance(u64);

impl Chance {
    fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() % end as u64).unwrap()
    }

    fn word(&mut self) -> u64 {
        match self.below(4) {
            0 => self.number() & 0xff,
            1 => 1 << self.below(64),
            2 => !0,
            _ => self.number(),
        }
    }

    fn half(&mut self) -> u32 {
        u32::try_from(self.word() & 0xffff_ffff).unwrap()
    }
}

/// A snapshot of two vCPUs of which one has not been started.
fn saved() -> (TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        memory: 32 << 20,
        cpus: 2,
        ..Config::new(Kernel::Code(GUEST.to_vec()))
    };
    let machine = Builder::new(config).build().unwrap();
    let saved = save_in(folder.path(), |state, memory, name| {
        machine.snapshot_into(&SaveFiles {
            state,
            memory,
            name,
        })
    });
    saved.unwrap();
    let state = std::fs::read(folder.path().join(SaveFiles::STATE)).unwrap();
    (folder, state)
}

/// Restores the snapshot in the folder, and lets the machine run for a while.
fn run(folder: &TempDir) -> Result<Outcome> {
    let snapshot = Snapshot::open(folder.path())?;
    let machine = Builder::restore(&snapshot).build()?;
    let control = machine.control();
    let (sender, ended) = channel();
    let running = thread::spawn(move || sender.send(machine.run()).unwrap());
    let outcome = ended.recv_timeout(A_WHILE).unwrap_or_else(|_| {
        control.stop();
        ended.recv_timeout(DEADLINE).expect("it hangs, or panicked")
    });
    running.join().unwrap();
    // The gate's error for a vCPU's thread that panicked.
    assert!(!matches!(outcome, Err(Error::Output(_))), "{outcome:?}");
    outcome
}

/// Forges one state after another; returns how many of them ran.
fn forge(kind: &str, mut change: impl FnMut(&mut State, &mut Chance)) -> usize {
    let (folder, state) = saved();
    let mut chance = Chance(stress::seed() ^ 0x1234_5678_9abc_def1);
    let ran = (0..rounds()).filter(|_| {
        let mut state = file::decode(&state).unwrap();
        change(&mut state, &mut chance);
        std::fs::write(folder.path().join(SaveFiles::STATE), file::encode(&state)).unwrap();
        run(&folder).is_ok()
    });
    let ran = ran.count();
    println!("{kind}: {ran} of {} ran", rounds());
    ran
}

#[test]
fn a_forged_cpuid_ends_well() {
    forge("CPUID", |state, chance| {
        let table = &mut state.vcpus[0].cpuid;
        match chance.below(3) {
            0 => {
                let entry = chance.below(table.len());
                let entry = &mut table[entry];
                let word = [
                    &mut entry.function,
                    &mut entry.index,
                    &mut entry.flags,
                    &mut entry.eax,
                    &mut entry.ebx,
                    &mut entry.ecx,
                    &mut entry.edx,
                ];
                *word.into_iter().nth(chance.below(7)).unwrap() = chance.half();
            }
            1 => table.truncate(1 + chance.below(table.len())),
            _ => {
                // vmx and svm, and what there is to know of svm; and a leaf of any kind.
                for entry in &mut *table {
                    match entry.function {
                        0x1 => entry.ecx |= 1 << 5,
                        0x8000_0001 => entry.ecx |= 1 << 2,
                        _ => {}
                    }
                }
                let function = [0x8000_000a, 0xd, chance.half()][chance.below(3)];
                table.push(kvm_cpuid_entry2 {
                    function,
                    index: chance.half() & 0x1f,
                    eax: chance.half(),
                    ebx: chance.half(),
                    ecx: chance.half(),
                    edx: chance.half(),
                    ..Default::default()
                });
            }
        }
    });
}

#[test]
fn forged_msrs_end_well() {
    forge("MSRs", |state, chance| {
        let msrs = state.vcpus[0].msrs();
        for _ in 0..=chance.below(4) {
            let at = chance.below(msrs.len());
            match chance.below(3) {
                0 => msrs[at].data = chance.word(),
                1 => msrs[at].index = chance.half(),
                _ => msrs.push(kvm_msr_entry {
                    // EFER, the local APIC's base, nested virtualization's, x2APIC's; any.
                    index: [
                        0xc000_0080,
                        0x1b,
                        0x3a,
                        0x480,
                        0x808,
                        0xc001_0117,
                        chance.half(),
                    ][chance.below(7)],
                    data: chance.word(),
                    ..Default::default()
                }),
            }
        }
    });
}

#[test]
fn forged_devices_end_well() {
    let ran = forge("devices", |state, chance| {
        let any = |length, chance: &mut Chance| -> Vec<u8> {
            (0..length)
                .map(|_| chance.number().to_le_bytes()[2])
                .collect()
        };
        // As it stands in the file: nine registers, then the input with its length before it.
        let port = |chance: &mut Chance| -> uart::State {
            let input = chance.below(65);
            let mut bytes = any(9, chance);
            bytes.push(u8::try_from(input).unwrap());
            bytes.extend(any(input, chance));
            postcard::from_bytes(&bytes).unwrap()
        };
        let table: [u64; ioapic::PINS as usize] = std::array::from_fn(|_| chance.word());
        let ioapic = (
            chance.number().to_le_bytes()[0],
            chance.half(),
            table,
            chance.half(),
            true,
        );
        let ioapic = postcard::to_allocvec(&ioapic).unwrap();
        state.devices = Devices {
            board: board::State {
                clock: Some(chance.word()),
                ioapic: postcard::from_bytes(&ioapic).unwrap(),
            },
            uarts: (0..2 + chance.below(2)).map(|_| port(chance)).collect(),
        };
    });
    assert!(ran > 0, "none of them ran");
}

#[test]
fn a_body_with_any_bytes_ends_well() {
    let (folder, state) = saved();
    let mut chance = Chance(stress::seed() ^ 0xfeed_5eed_0123_4567);
    for _ in 0..4 * rounds() {
        let mut body = state[48..].to_vec();
        let at = chance.below(body.len() - 8);
        let length = 1 + chance.below(8);
        body[at..at + length].copy_from_slice(&chance.word().to_le_bytes()[..length]);
        std::fs::write(folder.path().join(SaveFiles::STATE), file::with_body(&body)).unwrap();
        let _ = run(&folder);
    }
}
