//! A microVM monitor: it runs a Linux kernel on KVM with RAM, UARTs and nothing else.
//!
//! A [`Config`] describes a machine, [`Builder::build`] makes it, [`Machine::run`] runs it to its end, and the [`Outcome`] is
//! the reason for that end. A failure is an [`Error`].
//!
//! # A boot, step by step
//!
//! 1. [`Config::check`] refuses a configuration that no machine can have.
//! 2. [`Builder::build`] (`builder`) reserves guest RAM (`memory`), and two threads work at once. One loads the kernel
//!    (`kernel`) and the initramfs (`initramfs`), and writes the data that firmware and a boot loader leave in memory (`arch`):
//!    page tables, ACPI tables, the zero page.
//! 3. The other one opens `/dev/kvm`, creates the machine, lends it the RAM, and creates the vCPUs (`kvm`).
//! 4. `build` connects the devices (`devices`): the UARTs, the IOAPIC that carries their interrupts, and the ports that end
//!    the machine.
//! 5. [`Machine::run`] (`machine`) gives each vCPU a thread and opens the gate (`gate`). The vCPU's loop (`vcpu`) enters the
//!    guest with `KVM_RUN`, serves the exit, and starts over.
//! 6. Meanwhile the calling thread moves input to the UARTs (`input`), and [`Control`] can pause, save or stop the machine from
//!    any other thread.
//! 7. The guest ends the machine, and `run` returns the [`Outcome`] (`outcome`).
//!
//! On arm64 the tables are one, the device tree, which is written when the vCPUs are there; KVM has the interrupt controller, and
//! the guest ends the machine by calls of PSCI instead of ports.
//!
//! A machine starts paused, and a vCPU that comes to the closed gate first makes an empty `KVM_RUN`, with `immediate_exit` set:
//! it completes an access to a device that the last exit left unfinished, without another instruction of the guest's. A fresh
//! vCPU has nothing to complete; its thread passes here like any other when it reaches the gate before `run` has opened it.
//!
//! A paused machine can be saved ([`Control::snapshot_into`]), and any number of machines can continue from there
//! ([`Builder::restore`]): the same recipe, with the memory mapped from a file instead of loaded, and the processors' and
//! devices' state set instead of reset.
//!
//! A process can give up its right to open files before it looks at any: [`Builder::open`] and [`SnapshotFiles::open`] open what
//! is read later, [`Control::snapshot_into`] saves into files that are open, and [`Builder::vcpu_thread`] is for what a vCPU's
//! thread gives up beyond that.
//!
//! # Modules
//!
//! | module | holds |
//! |---|---|
//! | `config`, `error`, `outcome` | a machine's description, its failures, its end |
//! | `builder` | the recipe: from a [`Config`] or a [`Snapshot`] to a paused [`Machine`] |
//! | `opened` | the files that a machine is made of, opened ahead |
//! | `kvm` | the KVM calls that make a machine |
//! | `memory`, `pmem` | guest RAM as memory of this process; a file that the guest reads in place |
//! | `kernel`, `initramfs` | the loaders of kernels and of the initramfs |
//! | `arch` | what differs between processors: [`layout`], the map of the guest's addresses; kernels' formats; page tables, ACPI, the zero page, CPUID, registers; the IOAPIC, the ports that end a machine; the exits; a vCPU's whole state |
//! | `machine`, `control`, `gate`, `vcpu` | running a machine: its threads, and the way in and out of the guest |
//! | `devices`, `input` | UARTs and the bus; input for the UARTs |
//! | `snapshot` | saved machines, and clones of them |
//! | `observer`, `recorder`, `statistics` | a view of a machine's exits, of its steps, and of KVM's counts |
//! | `random` | the host's random numbers |
//!
//! "KVM API 4.2" in a comment is section 4.2 of the kernel's manual, `Documentation/virt/kvm/api.rst` of Linux 6.12, which is
//! also at <https://docs.kernel.org/virt/kvm/api.html>. Each KVM call is explained where it is made.
//!
//! `examples/hello_kvm.rs` is a guest of eleven bytes, which writes `!` to the console and pulses the reset line.

// Tests run: on any KVM

mod arch;
mod builder;
mod config;
mod control;
mod devices;
mod error;
mod gate;
mod initramfs;
mod input;
mod kernel;
mod kvm;
mod machine;
mod memory;
mod observer;
mod opened;
mod outcome;
mod pmem;
mod random;
mod recorder;
mod sent;
mod snapshot;
mod statistics;
mod vcpu;

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;

pub use arch::layout;
pub use arch::text::NO_KVM;
pub use builder::Builder;
pub use config::{CPUS_MAX, Config, Kernel, MEMORY_MAX, MEMORY_MIN};
pub use control::Control;
pub use error::{Error, Result};
pub use input::InputSource;
pub use kernel::KernelError;
pub use machine::Machine;
pub use memory::{Memory, NoMemory};
pub use observer::{Exit, ExitKind, Observer, Step};
pub use outcome::{Outcome, Reset};
pub use snapshot::{Prepared, SaveFiles, Snapshot, SnapshotError, SnapshotFiles, WorkingSet};
pub use statistics::Statistics;
