//! Boots a kernel, with its console on stdout: `boot KERNEL [INITRAMFS [CMDLINE [CPUS]]]`.
//!
//! ```console
//! $ cargo run -q -p minivm-vmm --example boot -- vmlinux initramfs.cpio "console=ttyS0 reboot=t panic=-1"
//! ```

use std::env;
use std::io;

use minivm_vmm::{Builder, Config, Kernel};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let kernel = arguments
        .next()
        .ok_or("usage: boot KERNEL [INITRAMFS [CMDLINE [CPUS]]]")?;
    let mut config = Config::new(Kernel::File(kernel.into()));
    config.initramfs = arguments.next().map(Into::into);
    config.cmdline = arguments.next().unwrap_or("console=ttyS0 panic=-1".into());
    config.cpus = arguments.next().map_or(Ok(1), |cpus| cpus.parse())?;
    let outcome = Builder::new(config)
        .console_output(io::stdout())
        .build()?
        .run()?;
    println!("{outcome}");
    Ok(())
}
