//! What long rows of monitors, and many at once, leave in the process that starts them: nothing.

use std::fs::File;
use std::sync::Barrier;

use minivm_machine::monitor::{Monitor, Spec};
use minivm_tests::code::RESET;
use minivm_tests::growth::{alone, check};
use minivm_tests::stress;
use minivm_vmm::{Config, Kernel, Outcome, Reset};

/// Starts a monitor, whose machine is about to reset itself.
fn built() -> Monitor {
    let config = Config {
        memory: 32 << 20,
        ..Config::new(Kernel::Code(RESET.to_vec()))
    };
    let null = || File::options().read(true).write(true).open("/dev/null");
    let (input, output) = (null().unwrap().into(), null().unwrap().into());
    Spec::boot(config).start_console(input, output).unwrap()
}

fn run_to_end(monitor: &Monitor) {
    monitor.run();
    let end = monitor.end().unwrap();
    assert_eq!(end.outcome.unwrap(), Outcome::Reboot(Reset::Line));
}

#[test]
fn monitors_in_a_row_leave_nothing_behind() {
    alone("growth::monitors_in_a_row_leave_nothing_behind", || {
        check(stress::count(3, 100), || {
            for number in 0..stress::count(10, 100) {
                let monitor = built();
                // One in ten never runs.
                if number % 10 != 0 {
                    run_to_end(&monitor);
                }
            }
        });
    });
}

#[test]
fn monitors_at_once_leave_nothing_behind() {
    alone("growth::monitors_at_once_leave_nothing_behind", || {
        let monitors = stress::count(16, 200);
        check(stress::count(2, 5), || {
            let all_are_built = Barrier::new(monitors);
            std::thread::scope(|scope| {
                for _ in 0..monitors {
                    scope.spawn(|| {
                        let monitor = built();
                        all_are_built.wait();
                        run_to_end(&monitor);
                    });
                }
            });
        });
    });
}
