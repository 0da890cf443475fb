//! KVM's own counts beside the trace's: the exits of the hardware, of which minivm sees only those that KVM can't handle.

use std::fmt;

use crate::event::Event;
use crate::statistics::Statistic;

/// The counts that say what happens between the guest and KVM, in words. (`kvm_vcpu_stats_desc` in the kernel's `arch/x86/kvm/x86.c` and
/// `arch/arm64/kvm/guest.c`, and where each is incremented.)
const WORDS: &[(&str, &str)] = &[
    ("io_exits", "for an access to a port"),
    ("mmio_exits", "for an access to an address without RAM"),
    (
        "mmio_exit_user",
        "for an access to an address without RAM that minivm serves",
    ),
    (
        "mmio_exit_kernel",
        "for an access to an address without RAM that KVM serves",
    ),
    ("hvc_exit_stat", "calls of KVM, PSCI's among them (HVC)"),
    ("wfi_exit_stat", "waits for an interrupt (WFI)"),
    ("wfe_exit_stat", "waits for an event (WFE)"),
    ("halt_exits", "halts (HLT)"),
    ("irq_exits", "for an interrupt of the host's"),
    (
        "irq_window_exits",
        "when the guest was ready for an interrupt",
    ),
    (
        "nmi_window_exits",
        "when the guest was ready for a non-maskable interrupt",
    ),
    (
        "request_irq_exits",
        "for an interrupt that minivm asked for",
    ),
    ("signal_exits", "for a signal to the vCPU's thread"),
    ("hypercalls", "hypercalls"),
    ("pf_taken", "page faults that KVM looked at"),
    ("pf_fixed", "page faults for which KVM mapped a page"),
    ("insn_emulation", "instructions that KVM emulated"),
    ("irq_injections", "interrupts given to the guest"),
    (
        "nmi_injections",
        "non-maskable interrupts given to the guest",
    ),
    ("halt_wakeup", "wake-ups of a halted vCPU"),
    ("tlb_flush", "flushes of the guest's translations"),
    (
        "preemption_other",
        "vCPUs that the host took off their core",
    ),
];

/// What KVM counts of one machine.
#[derive(Debug, Default)]
pub(crate) enum Counts {
    /// Nothing has been read.
    #[default]
    Unread,
    Read(Vec<Statistic>),
    /// The reason why KVM's counts could not be read.
    Refused(String),
}

impl Counts {
    /// Takes the counts of an event, if it has some.
    pub(crate) fn take(&mut self, event: &Event) {
        match event {
            Event::Counts { counts } => *self = Counts::Read(counts.clone()),
            Event::NoCounts { reason } => *self = Counts::Refused(reason.clone()),
            _ => {}
        }
    }

    /// Shows the counts, beside the number of exits that minivm saw, where that is known.
    pub(crate) fn show(&self, f: &mut fmt::Formatter<'_>, seen: Option<u64>) -> fmt::Result {
        let counts = match self {
            Counts::Unread => return Ok(()),
            Counts::Refused(reason) => {
                return writeln!(
                    f,
                    "Exits of the processor, out of the guest: KVM's counts can't be read (Linux 5.14 or newer has them): {reason}"
                );
            }
            Counts::Read(counts) => counts,
        };
        let all = sum(counts, "exits");
        write!(f, "Exits of the processor, out of the guest: {all}")?;
        match seen.and_then(|seen| all.checked_sub(seen)) {
            Some(kept) => writeln!(f, ", of which {kept} stayed in KVM")?,
            None => writeln!(f)?,
        }
        for (name, words) in WORDS {
            match sum(counts, name) {
                0 => {}
                count => writeln!(f, " {count:>6}  {words} ({name})")?,
            }
        }
        Ok(())
    }
}

/// Adds a count of all vCPUs.
fn sum(counts: &[Statistic], name: &str) -> u64 {
    let named = counts.iter().filter(|count| count.name == name);
    named.fold(0, |all, count| all.saturating_add(count.count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::totals::Totals;

    fn shown(event: &Event) -> String {
        let mut totals = Totals::default();
        totals.counts.take(event);
        totals.to_string()
    }

    #[test]
    fn counts_of_all_vcpus_are_added_and_zeros_left_out() {
        let count = |vcpu, name: &str, count| Statistic {
            vcpu: Some(vcpu),
            name: name.into(),
            count,
        };
        let counts = vec![
            count(0, "exits", 40),
            count(0, "halt_exits", 3),
            count(1, "exits", 2),
            count(1, "halt_exits", 4),
            count(1, "hypercalls", 0),
            count(1, "fpu_reload", 9),
        ];
        let text = shown(&Event::Counts { counts });
        assert!(
            text.contains("out of the guest: 42, of which 42 stayed in KVM"),
            "{text}"
        );
        assert!(text.contains(" 7  halts (HLT) (halt_exits)"), "{text}");
        assert!(
            !text.contains("hypercalls") && !text.contains("fpu"),
            "{text}"
        );
    }

    #[test]
    fn a_kvm_without_counts_says_so_in_one_line() {
        let text = shown(&Event::NoCounts {
            reason: "no such call".into(),
        });
        assert!(text.ends_with("has them): no such call\n"), "{text}");
    }
}
