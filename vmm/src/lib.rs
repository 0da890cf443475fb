//! A microVM monitor: it puts a Linux kernel into KVM with RAM, two UARTs and nothing else.
//!
//! # A boot, step by step
//!
//! 1. A [`Config`] says what the machine is to be; [`Config::check`] refuses what can't be.
//! 2. [`Builder::build`] is the recipe, a line a step. It reserves guest RAM (`memory`), loads the kernel (`kernel`)
//!    and the initramfs, and writes what firmware and a boot loader would have left in memory (`arch`): page tables,
//!    ACPI tables, the zero page.
//! 3. It opens `/dev/kvm`, creates the machine, lends it the RAM, asks for local APICs, and creates the vCPUs.
//! 4. It connects the devices (`devices`): two UARTs, the IOAPIC that carries their interrupts, and the ports that end
//!    the machine.
//! 5. [`Machine::run`] gives every vCPU a thread. Its loop (`vcpu`) enters the guest, serves the exit, and goes round. A machine
//!    starts paused, and a pause has each vCPU finish the instruction that it is in: so the first `KVM_RUN` of each is an empty
//!    one, with `immediate_exit` set.
//! 6. Meanwhile [`Control`] can pause, resume or stop the machine, and input flows to the UARTs (`input`).
//! 7. The guest ends, and the [`Outcome`] says how.
//!
//! A paused machine can be saved ([`Control::snapshot`]), and any number of machines can go on from there
//! ([`Builder::restore`]): the same recipe, with the memory mapped from a file instead of loaded, and the processors' and
//! devices' state set instead of reset. A [`Pool`] makes them ahead.
//!
//! The memory map is at the head of [`layout`].
//!
//! # Example
//!
//! A guest of eleven bytes: it writes `!` to the console and pulses the reset line.
//!
//! ```no_run
//! use minivm_vmm::{Builder, Config, Kernel, Outcome, Reset};
//!
//! let code = [
//!     0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
//!     0xb0, b'!',             // mov al, '!'
//!     0xee,                   // out dx, al
//!     0xb0, 0xfe,             // mov al, 0xfe
//!     0xe6, 0x64,             // out 0x64, al
//! ];
//! let config = Config::new(Kernel::Code(code.to_vec()));
//! let outcome = Builder::new(config).console_output(std::io::stdout()).build()?.run()?;
//! assert_eq!(outcome, Outcome::Reboot(Reset::Line));
//! # minivm_vmm::Result::Ok(())
//! ```

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
pub mod layout;
mod machine;
mod memory;
mod outcome;
mod pool;
mod probe;
mod restraint;
mod snapshot;
mod vcpu;

pub use builder::Builder;
pub use config::{CPUS_MAX, Config, Kernel, MEMORY_MAX, MEMORY_MIN};
pub use control::Control;
pub use error::{Error, Result};
pub use input::Input;
pub use kernel::KernelError;
pub use machine::Machine;
pub use memory::{Memory, NoMemory};
pub use outcome::{Outcome, Reset};
pub use pool::Pool;
pub use probe::{create_vm_time, probe};
pub use snapshot::{Prepared, Snapshot, SnapshotError, WorkingSet};
