//! A check that the lab's kernel has a timer that works.
//!
//! The kernel measures at its start how fast the local APIC's timer counts: it reads it before and after a tenth of a second
//! by the processor's clock. Where the host doesn't run the emulator for that tenth before the first reading, the two readings
//! are equal. The kernel then logs "APIC frequency too slow, disabling apic timer", and as the machine has no other timer, a
//! process that sleeps from then on sleeps for ever. A shorter pause makes a timer that is wrong in proportion.
//! (Linux 6.12, arch/x86/kernel/apic/apic.c, `calibrate_APIC_clock`.) The kernel takes no frequency from outside, and measures
//! again only when it is started again.

use std::fs;

/// The kernel's list of its timers. Only root may read it.
const LIST: &str = "/proc/timer_list";
/// The timer's frequency: QEMU's runs at 1 GHz, and the kernel has it count every 16th tick.
const HERTZ: f64 = 1e9 / 16.0;
/// The factor by which the measured frequency may be wrong. A busy host makes it wrong by half as much every day.
const TOLERANCE: f64 = 1.25;

/// Returns why timers are unreliable; `None` where they are reliable, or the kernel has no list.
pub(super) fn fault() -> Option<String> {
    fault_in(&fs::read_to_string(LIST).ok()?)
}

fn fault_in(list: &str) -> Option<String> {
    let (_, processors) = list.split_once("Per CPU device: ")?;
    processors
        .split("Per CPU device: ")
        .find_map(fault_of_processor)
}

/// Returns the fault of one processor's timer. Its part of the list begins with the processor's number.
fn fault_of_processor(part: &str) -> Option<String> {
    let number = part.lines().next()?.trim();
    let field = |name: &str| {
        let mut lines = part.lines();
        lines.find_map(|line| Some(line.trim().strip_prefix(name)?.trim()))
    };
    match field("Clock Event Device:")? {
        "<NULL>" => return Some(format!("processor {number} has no timer")),
        "lapic" => {}
        // Other timers aren't measured.
        _ => return None,
    }
    let multiplier: f64 = field("mult:")?.parse().ok()?;
    let shift: i32 = field("shift:")?.parse().ok()?;
    let hertz = multiplier * 1e9 / f64::from(shift).exp2();
    let sound = (HERTZ / TOLERANCE..HERTZ * TOLERANCE).contains(&hertz);
    (!sound).then(|| {
        let (found, right) = (hertz / 1e6, HERTZ / 1e6);
        format!("processor {number}'s timer was measured at {found:.1} MHz instead of {right}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = "Timer List Version: v0.10\n\nTick Device: mode:     1\nBroadcast device\nClock Event Device: <NULL>\n\n\
        Tick Device: mode:     1\nPer CPU device: 0\nClock Event Device: lapic\n max_delta_ns:   34360673034\n mult:           \
        268428154\n shift:          32\n mode:           3\n";

    #[test]
    fn a_timer_of_the_right_speed_is_sound() {
        assert_eq!(fault_in(SOUND), None);
        let by_a_tenth = SOUND.replace("268428154", "295270969");
        assert_eq!(fault_in(&by_a_tenth), None);
    }

    #[test]
    fn no_timer_is_a_fault() {
        let none = SOUND.replace("Device: lapic", "Device: <NULL>");
        assert_eq!(fault_in(&none).unwrap(), "processor 0 has no timer");
        let second = format!("{SOUND}{}", none.replace("device: 0", "device: 1"));
        assert_eq!(fault_in(&second).unwrap(), "processor 1 has no timer");
    }

    #[test]
    fn a_timer_of_half_or_twice_the_speed_is_a_fault() {
        for (multiplier, megahertz) in [("134214077", "31.2"), ("536856308", "125.0")] {
            let wrong = fault_in(&SOUND.replace("268428154", multiplier)).unwrap();
            let why =
                format!("processor 0's timer was measured at {megahertz} MHz instead of 62.5");
            assert_eq!(wrong, why);
        }
    }

    #[test]
    fn an_incomplete_list_is_no_fault() {
        for list in ["", "Per CPU device: 0\n", "Timer List Version: v9\n"] {
            assert_eq!(fault_in(list), None);
        }
    }

    #[test]
    fn a_timer_of_another_kind_has_a_speed_of_its_own() {
        let deadline = SOUND.replace("lapic", "lapic-deadline");
        assert_eq!(fault_in(&deadline.replace("268428154", "1")), None);
    }
}
