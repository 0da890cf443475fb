//! The words of messages that differ between architectures.

/// The architecture's name.
pub(crate) const NAME: &str = "arm64";
/// The formats of kernels that a file isn't in.
pub(crate) const NO_KERNEL: &str =
    "neither an Image, plain or compressed by gzip, nor an EFI zboot image (vmlinuz.efi)";
/// The range of guest RAM that kernels can have, and the memory of a machine that has all of it.
pub(crate) const KERNELS_RAM: &str = "2 GiB and 2 MiB";
pub(crate) const KERNELS_MEMORY: &str = "1T";
/// The memory of a machine that has all of the RAM that an initramfs can have.
pub(crate) const INITRAMFS_MEMORY: &str = "32G";
/// The state of a machine of which no vCPU can go on.
pub(crate) const STUCK: &str =
    "the guest switched all its processors off, without having shut down";
/// The remedy where there is no `/dev/kvm`.
pub const NO_KVM: &str = "the host's kernel needs CONFIG_KVM, and firmware that starts it at EL2; in a cloud, a bare-metal machine";
