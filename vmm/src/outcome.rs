//! The ends that a machine can come to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::arch::text;

/// The way in which the guest reset the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reset {
    /// The guest pulsed the keyboard controller's reset line, or used ACPI's reset register, which is the same port here. On
    /// arm64: the guest called PSCI's SYSTEM_RESET.
    Line,
    /// The guest raised an exception that it could not handle (`reboot=t` does so on purpose).
    TripleFault,
}

/// The reason for a machine's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Outcome {
    /// The guest switched the power off: `poweroff`, or `echo o > /proc/sysrq-trigger`.
    PowerOff,
    /// The guest shut down in good order and asked for a reset: `reboot`, whatever `reboot=` says.
    Reboot(Reset),
    /// The guest reset while its interrupts were in use: a kernel that panics with `panic=-1` does so, and
    /// `echo b > /proc/sysrq-trigger`.
    ///
    /// The difference to [`Reboot`](Outcome::Reboot) is that a UART's interrupt is still routed. A kernel that has no UART
    /// open when it panics seems to reboot.
    ///
    /// On arm64 it is a warm reset (PSCI's SYSTEM_RESET2), which a panic asks for if Linux has `reboot=panic_warm` on its command
    /// line. Without that, or on a host older than Linux 5.18, whose KVM makes it a cold one, a panic seems to be a reboot; with
    /// `reboot=warm` or `reboot=soft` each reboot seems to be a panic. The one by `sysrq-trigger` is a reboot.
    Panic(Reset),
    /// The guest faulted three times in a row before it had set up any interrupt: it crashed while it was starting.
    TripleFault,
    /// The guest shut down in good order and then halted every vCPU: `halt`. Never on arm64, where Linux loops for ever instead.
    Halted,
    /// Every vCPU halted with its interrupts off, which nothing can end, and the guest had not shut down before: bare
    /// code's `cli; hlt`, or a kernel that gave up early in its start. On arm64: every vCPU has switched itself off (CPU_OFF); one
    /// that waits with its interrupts masked (WFI) can't be told from one that waits for an interrupt.
    Stuck,
    /// [`Control::stop`](crate::Control::stop) ended it.
    Stopped,
}

impl Outcome {
    /// Returns whether the guest ended by itself and in good order.
    pub fn is_orderly(self) -> bool {
        matches!(
            self,
            Outcome::PowerOff | Outcome::Reboot(_) | Outcome::Halted
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Outcome::PowerOff => "the guest switched the power off",
            Outcome::Reboot(Reset::Line) => "the guest rebooted",
            Outcome::Reboot(Reset::TripleFault) => "the guest rebooted (by a triple fault)",
            Outcome::Panic(Reset::Line) => "the guest's kernel panicked",
            Outcome::Panic(Reset::TripleFault) => {
                "the guest's kernel panicked or crashed (triple fault)"
            }
            Outcome::TripleFault => "the guest crashed while it was starting (triple fault)",
            Outcome::Halted => "the guest halted",
            Outcome::Stuck => text::STUCK,
            Outcome::Stopped => "the machine was stopped",
        })
    }
}
