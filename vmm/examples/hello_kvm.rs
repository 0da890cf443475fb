//! The smallest guest there is: eleven bytes that write one character to the console and reset the machine.
//!
//! ```console
//! $ cargo run -p minivm-vmm --example hello_kvm
//! !
//! the guest rebooted
//! ```
//!
//! `raw_kvm.rs` shows what `Builder` and `run` do for such a guest: each call to KVM.

use minivm_vmm::{Builder, Config, Kernel};

/// The guest's code, which the processor starts with, at 1 MiB and in 64-bit mode.
const GUEST: [u8; 11] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8    COM1's data register
    0xb0, b'!', //             mov al, '!'
    0xee, //                   out dx, al       leaves KVM: "port 0x3f8, one byte out"
    0xb0, 0xfe, //             mov al, 0xfe     "pulse the reset line"
    0xe6, 0x64, //             out 0x64, al     leaves KVM once more, and the machine ends
];

fn main() -> minivm_vmm::Result<()> {
    let config = Config::new(Kernel::Code(GUEST.to_vec()));
    let machine = Builder::new(config)
        .console_output(std::io::stdout())
        .build()?;
    let outcome = machine.run()?;
    println!("\n{outcome}");
    Ok(())
}
