//! The words of messages that differ between architectures.

/// The architecture's name.
pub(crate) const NAME: &str = "x86-64";
/// The formats of kernels that a file isn't in.
pub(crate) const NO_KERNEL: &str = "neither an ELF file (vmlinux) nor a bzImage";
/// The range of guest RAM that kernels can have, and the memory of a machine that has all of it.
pub(crate) const KERNELS_RAM: &str = "1 MiB";
pub(crate) const KERNELS_MEMORY: &str = "1G";
/// The memory of a machine that has all of the RAM that an initramfs can have.
pub(crate) const INITRAMFS_MEMORY: &str = "3G";
/// The state of a machine of which no vCPU can go on.
pub(crate) const STUCK: &str = "the guest halted with its interrupts off, without having shut down";
/// The remedy where there is no `/dev/kvm`.
pub const NO_KVM: &str = "load the kvm_intel or kvm_amd module (sudo modprobe), and enable virtualization in the firmware or in the cloud's settings";
