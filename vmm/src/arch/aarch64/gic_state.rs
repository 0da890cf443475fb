//! The GIC's state: reading it from KVM, and setting it in another machine.
//!
//! KVM gives and takes the GIC's registers by their offsets, in three groups: the distributor's, each processor's
//! redistributor's, and each processor's interface, which are system registers. The levels of the lines are a group of their own.
//! All vCPUs have to be out of KVM_RUN. (`Documentation/virt/kvm/devices/arm-vgic-v3.rst`; Arm IHI 0069, "GIC register
//! descriptions".)

#![allow(
    unsafe_code,
    reason = "KVM_GET_DEVICE_ATTR writes to an address that it is given as a number"
)]

use std::ptr;

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
    KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT, VGIC_LEVEL_INFO_LINE_LEVEL, kvm_device_attr,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::gic::{INTERRUPTS, Irqchip};
use crate::error::{Error, Result};
use crate::kvm::Created;

/// Registers of the distributor (GICD), each of which has bits for 32, 16 or 4 interrupts in a word, or a word for half of one.
const IIDR: u64 = 0x8;
const CTLR: u64 = 0x0;
const GROUP: u64 = 0x80;
const SET_ENABLE: u64 = 0x100;
const SET_PENDING: u64 = 0x200;
const SET_ACTIVE: u64 = 0x300;
const PRIORITY: u64 = 0x400;
const CONFIGURATION: u64 = 0xc00;
const ROUTER: u64 = 0x6000;
/// Registers of a redistributor (GICR): its own, and from the second 64 KiB on those of the processor's own interrupts, like the
/// distributor's.
const WAKER: u64 = 0x14;
const OWN: u64 = 0x1_0000;
/// The first shared interrupt.
const SHARED: u64 = 32;

/// Registers of a processor's interface (ICC).
const INTERFACE_CONTROL: u64 = system(12, 12, 4);
const INTERFACE: [u64; 7] = [
    system(12, 12, 5), // ICC_SRE_EL1
    INTERFACE_CONTROL, // ICC_CTLR_EL1
    system(4, 6, 0),   // ICC_PMR_EL1
    system(12, 8, 3),  // ICC_BPR0_EL1
    system(12, 12, 3), // ICC_BPR1_EL1
    system(12, 12, 6), // ICC_IGRPEN0_EL1
    system(12, 12, 7), // ICC_IGRPEN1_EL1
];
/// The active priorities of both groups (ICC_AP0R0_EL1, ICC_AP1R0_EL1), whose registers follow one another: one for 32
/// priorities.
const ACTIVE_PRIORITIES: [u64; 2] = [system(12, 8, 4), system(12, 9, 0)];

const fn system(crn: u64, crm: u64, op2: u64) -> u64 {
    3 << 14 | crn << 7 | crm << 3 | op2
}

/// The state of a GIC; by default none, in a machine that boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    distributor: Vec<u32>,
    processors: Vec<Processor>,
}

/// The state of a processor's part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Processor {
    redistributor: Vec<u32>,
    /// The levels of its own interrupts' lines: a bit each.
    lines: u32,
    /// Registers of its interface, by their numbers.
    interface: Vec<(u64, u64)>,
}

impl State {
    /// Sets the state in a GIC that is as after its initialization, in the order of the registers' lists: an interrupt's route,
    /// kind and priority come before its bits for enabled, pending and active. KVM gives a pending interrupt to a processor at
    /// once, and moves it only when that one has run.
    pub(crate) fn set(&self, created: &Created) -> Result<()> {
        let gic = &created.irqchip;
        for (offset, value) in distributor().zip(&self.distributor) {
            gic.set(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset, value)?;
        }
        for (at, processor) in gic.processors.iter().zip(&self.processors) {
            for (offset, value) in redistributor().zip(&processor.redistributor) {
                gic.set(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, at | offset, value)?;
            }
            let lines = &processor.lines;
            gic.set(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, at | LINES, lines)?;
            for (number, value) in &processor.interface {
                gic.set(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, at | number, value)?;
            }
        }
        Ok(())
    }

    /// Checks that the state has the registers that are read of a GIC with so many processors. KVM checks the values.
    pub(crate) fn check(&self, processors: usize) -> std::result::Result<(), &'static str> {
        match self.distributor.len() == distributor().count()
            && self.processors.len() == processors
            && self.processors.iter().all(Processor::is_whole)
        {
            true => Ok(()),
            false => Err("no GIC has such a state"),
        }
    }
}

impl Processor {
    /// Returns whether the state has the registers that are read of a processor.
    fn is_whole(&self) -> bool {
        let control = self.interface.get(1).map_or(0, |(_, value)| *value);
        let numbers = self.interface.iter().map(|(number, _)| *number);
        self.redistributor.len() == redistributor().count() && numbers.eq(interface(control))
    }
}

/// The attribute of the levels of interrupts 0 to 31, which a processor's address completes.
const LINES: u64 = (VGIC_LEVEL_INFO_LINE_LEVEL << KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT) as u64;

/// Returns the distributor's registers of the shared interrupts, in the order in which they are set.
fn distributor() -> impl Iterator<Item = u64> {
    let interrupts = u64::from(INTERRUPTS);
    let routes = ROUTER + 8 * SHARED..ROUTER + 8 * interrupts;
    [IIDR, CTLR]
        .into_iter()
        .chain(routes.step_by(4))
        .chain(of_interrupts(SHARED, interrupts))
}

/// Returns a redistributor's registers, in the order in which they are set.
fn redistributor() -> impl Iterator<Item = u64> {
    let own = of_interrupts(0, SHARED).map(|offset| OWN + offset);
    [WAKER].into_iter().chain(own)
}

/// Returns the registers of the interrupts from `first` to `end`, both multiples of 32.
fn of_interrupts(first: u64, end: u64) -> impl Iterator<Item = u64> {
    let words =
        move |base: u64, bits: u64| (base + first * bits / 8..base + end * bits / 8).step_by(4);
    words(GROUP, 1)
        .chain(words(CONFIGURATION, 2))
        .chain(words(PRIORITY, 8))
        .chain(words(SET_ENABLE, 1))
        .chain(words(SET_PENDING, 1))
        .chain(words(SET_ACTIVE, 1))
}

/// Returns the registers of a processor's interface, whose ICC_CTLR_EL1 is `control`, in the order in which they are set. It has
/// as many registers of active priorities as it has priorities for.
fn interface(control: u64) -> impl Iterator<Item = u64> {
    let bits = (control >> 8 & 7) + 1;
    let count = 1 << bits.saturating_sub(5).min(2);
    let active = ACTIVE_PRIORITIES
        .into_iter()
        .flat_map(move |first| first..first + count);
    INTERFACE.into_iter().chain(active)
}

impl Irqchip {
    /// Reads the state. No vCPU is in KVM_RUN.
    pub(crate) fn state(&self, _vm: &VmFd) -> Result<State> {
        let processor = |at: &u64| {
            let redistributor = redistributor()
                .map(|offset| self.get(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, at | offset))
                .collect::<Result<_>>()?;
            Ok(Processor {
                redistributor,
                lines: self.get(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, at | LINES)?,
                interface: self.interface(*at)?,
            })
        };
        let distributor =
            distributor().map(|offset| self.get(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset));
        let processors = self.processors.iter().map(processor);
        Ok(State {
            distributor: distributor.collect::<Result<_>>()?,
            processors: processors.collect::<Result<_>>()?,
        })
    }

    /// Reads all registers of a processor's interface.
    fn interface(&self, at: u64) -> Result<Vec<(u64, u64)>> {
        let group = KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS;
        let control: u64 = self.get(group, at | INTERFACE_CONTROL)?;
        interface(control)
            .map(|number| Ok((number, self.get(group, at | number)?)))
            .collect()
    }

    /// Reads an attribute: a register of four bytes, or of eight in a processor's interface.
    fn get<T: Default>(&self, group: u32, attribute: u64) -> Result<T> {
        let mut value = T::default();
        let mut attribute = kvm_device_attr {
            group,
            attr: attribute,
            addr: ptr::from_mut(&mut value) as u64,
            flags: 0,
        };
        // (KVM API 4.80, KVM_GET_DEVICE_ATTR.)
        // SAFETY: KVM writes eight bytes for an attribute of the interface, for which `T` is u64, and four for all others.
        unsafe { self.device.get_device_attr(&mut attribute) }
            .map_err(Error::kvm("KVM_GET_DEVICE_ATTR (of the GICv3)"))?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_set_before_an_interrupt_is_enabled_or_pends() {
        let last = |first: u64, last: u64| {
            let range = first..last;
            distributor()
                .collect::<Vec<_>>()
                .iter()
                .rposition(|at| range.contains(at))
        };
        let routes = last(ROUTER, ROUTER + 0x2000).unwrap();
        let first = distributor().position(|at| (SET_ENABLE..PRIORITY).contains(&at));
        assert!(routes < first.unwrap());
    }
}

#[cfg(test)]
impl State {
    /// A made-up state, with a number in it.
    pub(crate) fn sample(number: u64) -> Self {
        let processor = Processor {
            redistributor: vec![0; redistributor().count()],
            lines: 0,
            // The number is that of the priority mask.
            interface: interface(0)
                .map(|register| (register, if register == INTERFACE[2] { number } else { 0 }))
                .collect(),
        };
        State {
            distributor: vec![0; distributor().count()],
            processors: vec![processor],
        }
    }

    /// Returns the number of a made-up state.
    pub(crate) fn number(&self) -> u64 {
        self.processors[0].interface[2].1
    }

    /// Overwrites the distributor's registers, and one of each processor's interface, with made-up values.
    pub(super) fn overwrite(&mut self, words: &[u64]) {
        for (register, word) in self.distributor.iter_mut().zip(words.iter().cycle()) {
            *register = u32::try_from(word & 0xffff_ffff).unwrap();
        }
        for (processor, word) in self.processors.iter_mut().zip(words) {
            processor.interface[4].1 = *word;
        }
    }

    /// Forges states of the sample, none of which a GIC has.
    pub(super) fn forgeries() -> [(&'static str, fn(&mut State)); 7] {
        [
            ("few registers", |gic| gic.distributor.truncate(1)),
            ("a register more", |gic| gic.distributor.push(0)),
            ("no processor", |gic| gic.processors.clear()),
            ("a processor more", |gic| {
                gic.processors.push(gic.processors[0].clone());
            }),
            ("a redistributor of a few registers", |gic| {
                gic.processors[0].redistributor.truncate(3);
            }),
            ("a register of another number", |gic| {
                gic.processors[0].interface[3].0 ^= 1;
            }),
            ("an interface without registers", |gic| {
                gic.processors[0].interface.clear();
            }),
        ]
    }
}
