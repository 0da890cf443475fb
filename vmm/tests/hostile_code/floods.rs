//! Two vCPUs that flood a UART each, while the outputs take nothing.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use minivm_tests::code::{map, place, wake};
use minivm_tests::patience::wait_until;
use minivm_vmm::{Builder, Config, Control, Error, Kernel, Machine, Outcome, layout};

use super::{run_to_end, save};

/// A pipe that nothing is read from, and how many writes to it have begun and ended.
#[derive(Clone, Default)]
struct Count(Arc<(AtomicUsize, AtomicUsize)>);

struct Blocked(PipeWriter, Count);

impl Write for Blocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Count(count) = &self.1;
        count.0.fetch_add(1, SeqCst);
        let written = self.0.write(bytes);
        count.1.fetch_add(1, SeqCst);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Count {
    /// Returns how many writes have ended, if one is under way.
    fn under_way(&self) -> Option<usize> {
        let (begun, ended) = (self.0.0.load(SeqCst), self.0.1.load(SeqCst));
        (begun > ended).then_some(ended)
    }

    /// Waits until a write doesn't come to its end.
    fn wait_until_blocked(&self) {
        wait_until("the pipe is never full", || {
            let before = self.under_way();
            std::thread::sleep(Duration::from_millis(100));
            before.is_some_and(|ended| ended > 1000) && before == self.under_way()
        });
    }
}

/// A machine whose vCPUs write to COM1 and COM2 for ever, with strings and single bytes.
fn flood(com1: impl Write + Send + 'static, com2: impl Write + Send + 'static) -> Machine {
    // In real mode: mov dx, 0x2f8; again: out dx, al; jmp again
    let second = [0xba, 0xf8, 0x02, 0xee, 0xeb, 0xfd];
    let first = [
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xbe, 0x00, 0x00, 0x10, 0x00, // again: mov esi, 0x100000
        0xb9, 0x00, 0x10, 0x00, 0x00, // mov ecx, 4096
        0xf3, 0x6e, // rep outsb
        0xeb, 0xf2, // jmp again
    ];
    let code = [
        &map(layout::LOCAL_APIC.0)[..],
        &place(0x3_0000, &second),
        &wake(0x30),
        &first,
    ];
    let config = Config {
        memory: 64 << 20,
        cpus: 2,
        ..Config::new(Kernel::Code(code.concat()))
    };
    Builder::new(config)
        .console_output(com1)
        .com2_output(com2)
        .build()
        .unwrap()
}

/// A flood whose pipes are full.
fn blocked(act: impl FnOnce(&Control) + Send + 'static) -> Outcome {
    let pipe = || -> (PipeReader, Blocked, Count) {
        let (reader, writer) = io::pipe().unwrap();
        let count = Count::default();
        (reader, Blocked(writer, count.clone()), count)
    };
    let ((_com1, one, first), (_com2, two, second)) = (pipe(), pipe());
    let machine = flood(one, two);
    let control = machine.control();
    let acting = std::thread::spawn(move || {
        first.wait_until_blocked();
        second.wait_until_blocked();
        act(&control);
    });
    let outcome = run_to_end(machine).unwrap();
    acting.join().unwrap();
    outcome
}

#[test]
fn a_flood_of_both_uarts_is_stopped_while_no_output_is_taken() {
    assert_eq!(blocked(Control::stop), Outcome::Stopped);
}

#[test]
fn a_pause_that_waits_for_a_full_pipe_ends_with_the_machine() {
    let act = |control: &Control| {
        let pausing = control.clone();
        let pauser = std::thread::spawn(move || pausing.pause());
        let saving = control.clone();
        let folder = tempfile::tempdir().unwrap();
        // Its vCPUs are in the middle of an instruction, so that it is never paused.
        let saver = std::thread::spawn(move || save(&saving, folder.path()).unwrap_err());
        control.stop();
        pauser.join().unwrap();
        let refused = saver.join().unwrap();
        assert!(matches!(refused, Error::NotPaused), "{refused:?}");
    };
    assert_eq!(blocked(act), Outcome::Stopped);
}

/// Floods both UARTs until so many bytes have come out of each, and stops the machine.
pub(crate) fn flood_and_stop(bytes: usize) {
    let (one, two) = (Count::default(), Count::default());
    struct Taken(Count);
    impl Write for Taken {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.0.0.fetch_add(bytes.len(), SeqCst);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let machine = flood(Taken(one.clone()), Taken(two.clone()));
    let control = machine.control();
    let stopper = std::thread::spawn(move || {
        wait_until("the flood ends", || {
            [&one, &two]
                .iter()
                .all(|count| count.0.0.load(SeqCst) >= bytes)
        });
        control.stop();
    });
    assert_eq!(run_to_end(machine).unwrap(), Outcome::Stopped);
    stopper.join().unwrap();
}
