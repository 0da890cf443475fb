//! A vCPU's whole state: reading it from KVM, and setting it in another machine.
//!
//! KVM lists all registers of a vCPU, those of its timer and of its firmware among them, and gives and takes each by its number.
//! The GIC's part of a processor is the GIC's, see `gic`.

use kvm_bindings::{KVM_REG_SIZE_MASK, KVM_REG_SIZE_SHIFT, RegList, kvm_mp_state, kvm_vcpu_events};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::identity::Identity;
use super::registers::{self, COUNTER, PHYSICAL_COUNTER};
use crate::error::{Error, Result};
use crate::vcpu::Vcpu;

/// The number of this architecture in a state file: ELF's, EM_AARCH64.
pub(crate) const MACHINE: u16 = 183;
/// The most registers that kvm-bindings' list holds: twice as many as a vCPU has. A state with more is no machine's.
const REGISTERS_MAX: usize = 500;
/// The bytes of the largest register: one of the vectors'.
const SIZE_MAX: usize = 16;

/// The parts of a vCPU's state that depend on the host.
#[derive(Debug)]
pub(crate) struct Inventory {
    /// Whether KVM shows a pending SError.
    events: bool,
}

impl Inventory {
    /// Asks this host's KVM, also about a machine of it.
    pub(crate) fn of_this_host(_kvm: &Kvm, vm: &VmFd) -> Result<Self> {
        Ok(Inventory {
            events: vm.check_extension(Cap::VcpuEvents),
        })
    }
}

/// The whole state of a vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    pub(super) identity: Identity,
    mp_state: kvm_mp_state,
    registers: Vec<Register>,
    /// Whether an SError is pending, whether it has a syndrome, and that, where KVM shows it.
    serror: Option<(u8, u8, u64)>,
}

/// A register by KVM's number of it, in which its size is.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Register {
    id: u64,
    value: Vec<u8>,
}

impl VcpuState {
    /// Reads the state of a vCPU that is at rest: no thread is in KVM_RUN, and no access to a device is half done, because
    /// KVM doesn't show that.
    pub(crate) fn of(vcpu: &Vcpu, inventory: &Inventory) -> Result<Self> {
        let fd = &vcpu.fd;
        let mp_state = fd.get_mp_state().map_err(Error::kvm("KVM_GET_MP_STATE"))?;
        let mut list = RegList::new(REGISTERS_MAX).expect("the list holds so many");
        // The numbers of all registers that KVM keeps for this vCPU on this host. (KVM API 4.84, KVM_GET_REG_LIST.)
        fd.get_reg_list(&mut list)
            .map_err(Error::kvm("KVM_GET_REG_LIST (of at most 500 registers)"))?;
        let registers = list.as_slice().iter().map(|&id| Register::of(fd, id));
        let registers = registers.collect::<Result<_>>()?;
        let serror = inventory.events.then(|| serror(fd)).transpose()?;
        Ok(VcpuState {
            identity: Identity::of(vcpu)?,
            mp_state,
            registers,
            serror,
        })
    }

    /// Sets the state in a vCPU that has never run.
    pub(crate) fn set(&self, vcpu: &Vcpu) -> Result<()> {
        let fd = &vcpu.fd;
        // The counters are the machine's, and each setting moves them for all vCPUs: they are set once, by the first.
        let is_counter = |register: &&Register| [COUNTER, PHYSICAL_COUNTER].contains(&register.id);
        let (counters, own): (Vec<_>, Vec<_>) = self.registers.iter().partition(is_counter);
        own.into_iter().try_for_each(|register| register.set(fd))?;
        if let Some(serror) = self.serror {
            set_serror(fd, serror)?;
        }
        if vcpu.id == 0 {
            // From here on the guest's time goes on where it was. KVM sets the difference to the host's counter.
            counters
                .into_iter()
                .try_for_each(|register| register.set(fd))?;
        }
        // Whether it runs, or is off. (KVM API 4.39, KVM_SET_MP_STATE.)
        fd.set_mp_state(self.mp_state)
            .map_err(Error::kvm("KVM_SET_MP_STATE"))
    }

    /// Checks the sizes of the parts that aren't of a fixed size. KVM checks the values.
    pub(crate) fn check(&self) -> std::result::Result<(), &'static str> {
        if self.registers.is_empty() || self.registers.len() > REGISTERS_MAX {
            return Err("no vCPU has so many registers");
        }
        let fits = |register: &Register| {
            let size = size(register.id);
            size <= SIZE_MAX && register.value.len() == size
        };
        if !self.registers.iter().all(fits) {
            return Err("no register has such a size");
        }
        Ok(())
    }
}

/// Returns the bytes of a register.
fn size(id: u64) -> usize {
    1 << ((id & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT)
}

impl Register {
    fn of(vcpu: &VcpuFd, id: u64) -> Result<Self> {
        let value = registers::read(vcpu, id, size(id))?;
        Ok(Register { id, value })
    }

    /// Sets the register. One that can't be set is as good as set if it has the value already, as the processor's identity has.
    fn set(&self, vcpu: &VcpuFd) -> Result<()> {
        if vcpu.set_one_reg(self.id, &self.value).is_ok() {
            return Ok(());
        }
        let Register { id, value } = self;
        match registers::read(vcpu, *id, size(*id)) {
            Ok(now) if now == *value => Ok(()),
            _ => Err(Error::HostLacks(format!(
                "register {id:#x} (by KVM's numbers) that takes the bytes {value:02x?}"
            ))),
        }
    }
}

/// Returns whether an SError is pending, whether it has a syndrome, and that.
fn serror(vcpu: &VcpuFd) -> Result<(u8, u8, u64)> {
    // (KVM API 4.31, KVM_GET_VCPU_EVENTS.)
    let events = vcpu
        .get_vcpu_events()
        .map_err(Error::kvm("KVM_GET_VCPU_EVENTS"))?;
    let of = events.exception;
    Ok((of.serror_pending, of.serror_has_esr, of.serror_esr))
}

fn set_serror(vcpu: &VcpuFd, serror: (u8, u8, u64)) -> Result<()> {
    let mut events = kvm_vcpu_events::default();
    let of = &mut events.exception;
    (of.serror_pending, of.serror_has_esr, of.serror_esr) = serror;
    // (KVM API 4.32, KVM_SET_VCPU_EVENTS.)
    vcpu.set_vcpu_events(&events)
        .map_err(Error::kvm("KVM_SET_VCPU_EVENTS"))
}

#[cfg(test)]
impl VcpuState {
    /// A made-up state, in which each optional part is present.
    pub(crate) fn sample() -> Self {
        VcpuState {
            identity: Identity::default(),
            mp_state: Default::default(),
            registers: vec![Register {
                id: COUNTER,
                value: vec![7; 8],
            }],
            serror: Some((1, 1, 2)),
        }
    }

    /// Makes the state one that no vCPU has; returns a part of the refusal.
    pub(crate) fn spoil(&mut self) -> &'static str {
        self.registers.clear();
        "registers"
    }

    /// Forges states of the sample, none of which a vCPU has.
    pub(super) fn forgeries() -> [(&'static str, fn(&mut VcpuState)); 5] {
        [
            ("no registers", |vcpu| vcpu.registers.clear()),
            ("too many registers", |vcpu| {
                vcpu.registers
                    .resize(REGISTERS_MAX + 1, vcpu.registers[0].clone());
            }),
            ("a value that is too short", |vcpu| {
                vcpu.registers[0].value.truncate(7)
            }),
            ("a value that is too long", |vcpu| {
                vcpu.registers[0].value.push(0)
            }),
            ("a register of 32 KiB", |vcpu| {
                let register = &mut vcpu.registers[0];
                register.id |= KVM_REG_SIZE_MASK;
                register.value = vec![0; 1 << 15];
            }),
        ]
    }

    /// Makes a state one of another processor; with each, a part of the refusal.
    pub(super) fn foreign() -> [(&'static str, fn(&mut VcpuState)); 3] {
        [
            ("target", |vcpu| vcpu.identity.target ^= 1),
            ("MIDR_EL1", |vcpu| vcpu.identity.midr ^= 1),
            ("counter of", |vcpu| vcpu.identity.frequency += 1),
        ]
    }

    /// Overwrites a register with a made-up value, or its number.
    pub(super) fn overwrite(&mut self, word: u64) {
        let at = usize::try_from(word >> 32).unwrap() % self.registers.len();
        let register = &mut self.registers[at];
        match word & 1 {
            0 => register.id ^= word & 0xffff,
            _ => register.value[0] ^= word.to_le_bytes()[1],
        }
    }
}
