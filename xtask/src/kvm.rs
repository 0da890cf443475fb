//! Whether this machine has KVM, and how good it is.

use std::fs::OpenOptions;

/// The source alone: all of minivm-machine takes minutes to build, and this is the first question.
#[path = "../../machine/src/probe.rs"]
#[allow(unreachable_pub, reason = "it is public where it belongs")]
mod probe;

/// KVM that runs kernels: what minivm itself finds out, by running a guest of a few instructions.
pub(crate) fn runs_kernels() -> bool {
    probe::probe().is_ok()
}

/// KVM of any kind. Some of them emulate a guest's kernel, too slowly and not exactly enough to boot one.
pub(crate) fn is_there() -> bool {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}
