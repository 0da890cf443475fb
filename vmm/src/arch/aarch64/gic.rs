//! KVM's GICv3: the interrupt controller of an arm64 machine, with the processors' own parts of it.

use std::ptr;

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::{layout, registers};
use crate::error::{Error, Result};
use crate::vcpu::Vcpu;

/// The interrupts of the GIC: 32 of the processors' own, and as many shared ones, of which at most three are in use. It is KVM's least.
pub(super) const INTERRUPTS: u32 = 64;

/// KVM's interrupt controller of a machine. (`Documentation/virt/kvm/devices/arm-vgic-v3.rst`.)
pub(crate) struct Irqchip {
    pub(super) device: DeviceFd,
    /// The processors' addresses, as the GIC's attributes have them.
    pub(super) processors: Vec<u64>,
}

impl Irqchip {
    /// Creates the controller.
    pub(crate) fn create(vm: &VmFd) -> Result<Self> {
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
            ..Default::default()
        };
        // A device that KVM emulates, as a descriptor. It fails with ENODEV where the host's own controller can't serve guests as
        // one of version 3. (KVM API 4.79, KVM_CREATE_DEVICE.)
        let device = vm
            .create_device(&mut device)
            .map_err(|errno| match errno.errno() {
                libc::ENODEV => Error::KvmUnusable(
                    "it has no GICv3 for guests (the host's own is a GICv2, for one)".into(),
                ),
                _ => Error::kvm("KVM_CREATE_DEVICE (KVM_DEV_TYPE_ARM_VGIC_V3)")(errno),
            })?;
        Ok(Irqchip {
            device,
            processors: Vec::new(),
        })
    }

    /// Completes the controller when all vCPUs are there, each of which has a redistributor: its number of interrupts, the
    /// places of its registers, and last its initialization, after which nothing of that can change.
    pub(crate) fn complete(&mut self, vcpus: &[Vcpu]) -> Result<()> {
        for vcpu in vcpus {
            let affinity = registers::affinity(&vcpu.fd)?;
            self.processors.push(processor(affinity));
        }
        self.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &INTERRUPTS)?;
        for (kind, address) in [
            (KVM_VGIC_V3_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR),
            (KVM_VGIC_V3_ADDR_TYPE_REDIST, layout::GIC_REDISTRIBUTORS),
        ] {
            self.set(KVM_DEV_ARM_VGIC_GRP_ADDR, kind.into(), &address.0)?;
        }
        // It has no value.
        let init = KVM_DEV_ARM_VGIC_CTRL_INIT.into();
        self.set(KVM_DEV_ARM_VGIC_GRP_CTRL, init, &())
    }

    pub(super) fn set<T>(&self, group: u32, attribute: u64, value: &T) -> Result<()> {
        let attribute = kvm_device_attr {
            group,
            attr: attribute,
            addr: ptr::from_ref(value) as u64,
            flags: 0,
        };
        // (KVM API 4.80, KVM_SET_DEVICE_ATTR.)
        self.device
            .set_device_attr(&attribute)
            .map_err(Error::kvm("KVM_SET_DEVICE_ATTR (of the GICv3)"))
    }
}

/// Returns a processor's address as the GIC's attributes have it: four fields of a byte each, in the upper half.
fn processor(affinity: u64) -> u64 {
    (affinity & 0xff_ffff | (affinity >> 32) << 24) << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT
}
