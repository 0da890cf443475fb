//! The gate without a guest: threads of the test are the vCPUs'.

use std::sync::atomic::AtomicBool;
use std::thread;

use minivm_tests::patience::wait_until;

use super::*;

#[test]
fn a_vcpu_that_another_has_woken_meanwhile_is_not_stuck() {
    let gate = Gate::new(2).unwrap();
    gate.resume();
    let save = |_: &Inventory| unreachable!("no snapshot is asked for");
    let off = AtomicBool::new(true);
    thread::scope(|scope| {
        let mut flag = 0;
        gate.join(0, &raw mut flag);
        let other = scope.spawn(|| {
            let mut flag = 0;
            gate.join(1, &raw mut flag);
            gate.note_halted(1, true);
            // Only the check closes the gate.
            wait_until("the check has begun", || !gate.is_open());
            let passage = gate.wait_at(1, &|| off.load(Ordering::SeqCst), &save);
            gate.leave(1);
            passage
        });
        // It was off when its thread last looked, and has been woken since.
        wait_until("vCPU 1 has noted", || gate.lock().slots[1].halted);
        gate.note_halted(0, true);
        wait_until("vCPU 1 is parked", || gate.lock().slots[1].parked);
        // It wakes vCPU 1, and switches itself off.
        off.store(false, Ordering::SeqCst);
        let passage = gate.wait_at(0, &|| true, &save);
        assert!(matches!(passage, Passage::Open { paused: false }));
        assert!(matches!(other.join().unwrap(), Passage::Open { .. }));
        gate.leave(0);
    });
    assert!(!gate.has_ended());
}
