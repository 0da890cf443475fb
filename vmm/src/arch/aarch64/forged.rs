//! Forged snapshots: the checksum is right, and the state is made up. Each is refused, or runs until it is stopped. Those with a
//! machine need a `/dev/kvm`.

use minivm_tests::snapshot::save_in;
use tempfile::TempDir;

use super::board;
use super::gic_state;
use super::vcpu_state::VcpuState;
use crate::snapshot::state::State;
use crate::snapshot::{SaveFiles, Snapshot, SnapshotError, file};
use crate::{Builder, Config, Error, Kernel, Outcome, Result};

/// `b .`
const LOOP: [u8; 4] = 0x1400_0000u32.to_le_bytes();

/// A snapshot of two vCPUs of which one is off.
fn saved() -> (TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        memory: 32 << 20,
        cpus: 2,
        ..Config::new(Kernel::Code(LOOP.to_vec()))
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

/// Restores a snapshot whose state is changed, and stops the machine.
fn run((folder, state): &(TempDir, Vec<u8>), change: impl FnOnce(&mut State)) -> Result<Outcome> {
    let mut state = file::decode(state).unwrap();
    change(&mut state);
    std::fs::write(folder.path().join(SaveFiles::STATE), file::encode(&state)).unwrap();
    let snapshot = Snapshot::open(folder.path())?;
    let machine = Builder::restore(&snapshot).build()?;
    machine.control().stop();
    machine.run()
}

#[test]
fn states_that_no_machine_has_are_refused() {
    let refused = |what: &str, change: &dyn Fn(&mut State)| {
        let mut state = State::sample();
        state.devices.board = board::State::sample(0);
        assert_eq!(state.check(), Ok(()));
        change(&mut state);
        let refusal = file::decode(&file::encode(&state))
            .map(drop)
            .expect_err(what);
        assert!(
            matches!(refusal, SnapshotError::Senseless(_)),
            "{what}: {refusal}"
        );
    };
    for (what, change) in VcpuState::forgeries() {
        refused(what, &|state| change(&mut state.vcpus[0]));
    }
    for (what, change) in gic_state::State::forgeries() {
        refused(what, &|state| change(&mut state.devices.board));
    }
    refused("a vCPU without its part of the GIC", &|state| {
        state.vcpus.push(VcpuState::sample());
    });
}

#[test]
fn a_snapshot_of_another_processor_is_refused_before_a_machine_is_made() {
    let saved = saved();
    for (part, change) in VcpuState::foreign() {
        let refusal = run(&saved, |state| change(&mut state.vcpus[1])).expect_err(part);
        assert!(matches!(refusal, Error::HostLacks(_)), "{refusal:?}");
        assert!(refusal.to_string().contains(part), "{refusal}");
        let snapshot = Snapshot::open(saved.0.path()).unwrap();
        assert!(snapshot.check_host().is_err(), "{part}");
    }
}

#[test]
fn forged_registers_end_well() {
    let saved = saved();
    assert_eq!(run(&saved, |_| ()).unwrap(), Outcome::Stopped);
    // A few bits of a generator of pseudo-random numbers with a fixed start.
    let mut chance = 0x1234_5678_9abc_def1u64;
    let mut word = move || {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance
    };
    let mut rounds = || (0..15).map(|_| word()).collect::<Vec<_>>();
    for words in [rounds(), rounds()] {
        // KVM refuses some, and takes others: both are right.
        let _ = run(&saved, |state| state.devices.board.overwrite(&words));
        for word in words {
            let _ = run(&saved, |state| state.vcpus[0].overwrite(word));
        }
    }
}
