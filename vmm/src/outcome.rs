//! Why a machine ended.

use std::fmt;

use crate::devices::ioapic::Routing;

/// How the guest made the processor reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// It pulsed the keyboard controller's reset line, or used ACPI's reset register, which is the same here.
    Line,
    /// It raised an exception that it could not handle (`reboot=t` does so on purpose).
    TripleFault,
}

/// Why a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The guest switched the power off: `poweroff`, or `echo o > /proc/sysrq-trigger`.
    PowerOff,
    /// The guest shut down in good order and asked for a reset: `reboot`, whatever `reboot=` says.
    Reboot(Reset),
    /// The guest reset while its interrupts were in use: a kernel that panics with `panic=-1` does so, and one that is
    /// told to by `echo b > /proc/sysrq-trigger`.
    ///
    /// It is told from [`Reboot`](Outcome::Reboot) by COM1's or COM2's interrupt being still routed. A kernel that has
    /// neither port open when it panics can't be told from one that reboots.
    Panic(Reset),
    /// The guest faulted three times in a row before it had set up any interrupt: it crashed while it was starting.
    TripleFault,
    /// The guest shut down in good order and then halted every vCPU: `halt`.
    Halted,
    /// Every vCPU halted with its interrupts off, which nothing can end, and the guest had not shut down before: bare
    /// code's `cli; hlt`, or a kernel that gave up before it could say so.
    Stuck,
    /// [`Control::stop`](crate::Control::stop) ended it.
    Stopped,
}

impl Outcome {
    /// What a reset means, given what the guest had done with its interrupts.
    pub(crate) fn of_reset(reset: Reset, routing: Routing) -> Self {
        match (reset, routing) {
            (reset, Routing::Active) => Outcome::Panic(reset),
            (Reset::TripleFault, Routing::Never) => Outcome::TripleFault,
            (reset, _) => Outcome::Reboot(reset),
        }
    }

    /// What it means that every vCPU is halted for ever.
    pub(crate) fn of_halt(routing: Routing) -> Self {
        match routing {
            Routing::Quiesced => Outcome::Halted,
            Routing::Never | Routing::Active => Outcome::Stuck,
        }
    }

    /// Whether the guest ended by its own will and in good order.
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
            Outcome::Stuck => "the guest halted with its interrupts off, without having shut down",
            Outcome::Stopped => "the machine was stopped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_means_what_the_interrupts_say() {
        let of = Outcome::of_reset;
        assert_eq!(
            of(Reset::Line, Routing::Never),
            Outcome::Reboot(Reset::Line)
        );
        assert_eq!(
            of(Reset::Line, Routing::Quiesced),
            Outcome::Reboot(Reset::Line)
        );
        assert_eq!(
            of(Reset::Line, Routing::Active),
            Outcome::Panic(Reset::Line)
        );
        assert_eq!(of(Reset::TripleFault, Routing::Never), Outcome::TripleFault);
        assert_eq!(
            of(Reset::TripleFault, Routing::Quiesced),
            Outcome::Reboot(Reset::TripleFault)
        );
        assert_eq!(
            of(Reset::TripleFault, Routing::Active),
            Outcome::Panic(Reset::TripleFault)
        );
    }
}
