//! The flattened device tree: all that a kernel learns of the machine.
//!
//! The names of nodes and properties are those of the Devicetree Specification 0.4 and of Linux's bindings
//! (`Documentation/devicetree/bindings`), which the comments name by their files there.

use vm_fdt::{Error, FdtWriter};
use vm_memory::GuestAddress;

use super::layout;
use crate::initramfs::Placed;

/// Bytes of seed: 32 for the kernel's random number generator, and 8 that place the kernel in its address space.
pub(crate) const SEED_LEN: usize = 40;
const KASLR_SEED: usize = 32;

/// The phandle of the interrupt controller.
const GIC: u32 = 1;
/// The first cell of an interrupt: a shared one, or one of the processor's own; the last: an edge, or a level
/// (`interrupt-controller/arm,gic-v3.yaml`).
const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;
/// The timers' interrupts, as KVM raises them: the secure physical one, the physical one, the virtual one, the hypervisor's
/// (`timer/arm,arch_timer.yaml`). Guests have the virtual one.
const TIMERS: [u32; 4] = [13, 14, 11, 10];
/// The UARTs' clock in Hz, a PC's: 16 times the highest rate.
const COM_CLOCK: u32 = 1_843_200;

/// The data in the tree that differ between machines.
pub(super) struct Tree {
    /// The processors' addresses (MPIDR), the first of which starts.
    pub(super) cpus: Vec<u64>,
    /// RAM in bytes.
    pub(super) memory: u64,
    /// The UARTs' first registers and interrupts.
    pub(super) uarts: &'static [(GuestAddress, u8)],
    pub(super) cmdline: String,
    pub(super) initramfs: Placed,
    pub(super) seed: [u8; SEED_LEN],
}

/// Returns the tree of a machine, of some two KiB.
pub(super) fn bytes(tree: &Tree) -> Vec<u8> {
    let bytes = write(tree).expect("the names and nesting are right, and no value has a NUL");
    debug_assert!(bytes.len() <= layout::TREE_MAX);
    bytes
}

fn write(tree: &Tree) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "minivm")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;
    chosen(&mut fdt, tree)?;
    aliases(&mut fdt, tree.uarts)?;
    memory(&mut fdt, tree.memory)?;
    cpus(&mut fdt, &tree.cpus)?;
    psci(&mut fdt)?;
    gic(&mut fdt, tree.cpus.len() as u64)?;
    timer(&mut fdt)?;
    for (address, spi) in tree.uarts {
        uart(&mut fdt, address.0, *spi)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

/// The data that a boot loader passes to the kernel. (Devicetree Specification, "/chosen Node"; Linux's `chosen.yaml`.)
fn chosen(fdt: &mut FdtWriter, tree: &Tree) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", &tree.cmdline)?;
    fdt.property_string("stdout-path", "serial0")?;
    if tree.initramfs.size > 0 {
        let Placed { start, size } = tree.initramfs;
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", start + size)?;
    }
    let (rng, kaslr) = tree.seed.split_at(KASLR_SEED);
    fdt.property("rng-seed", rng)?;
    fdt.property("kaslr-seed", kaslr)?;
    fdt.end_node(node)
}

/// The numbers of the UARTs: `ttyS0`, `ttyS1`, `ttyS2`.
fn aliases(fdt: &mut FdtWriter, uarts: &[(GuestAddress, u8)]) -> Result<(), Error> {
    let node = fdt.begin_node("aliases")?;
    for (number, (address, _)) in uarts.iter().enumerate() {
        let path = format!("/{}", uart_name(address.0));
        fdt.property_string(&format!("serial{number}"), &path)?;
    }
    fdt.end_node(node)
}

fn memory(fdt: &mut FdtWriter, bytes: u64) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("memory@{:x}", layout::RAM.0))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[layout::RAM.0, bytes])?;
    fdt.end_node(node)
}

/// The processors, which PSCI starts (`arm/cpus.yaml`).
fn cpus(fdt: &mut FdtWriter, addresses: &[u64]) -> Result<(), Error> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for address in addresses {
        let cpu = fdt.begin_node(&format!("cpu@{address:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_u64("reg", *address)?;
        fdt.property_string("enable-method", "psci")?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)
}

/// The way to start processors, to switch the power off and to reset (`arm/psci.yaml`): calls that KVM answers.
fn psci(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("psci")?;
    let versions = vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()];
    fdt.property_string_list("compatible", versions)?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)
}

/// The interrupt controller (`interrupt-controller/arm,gic-v3.yaml`).
fn gic(fdt: &mut FdtWriter, cpus: u64) -> Result<(), Error> {
    let distributor = layout::GIC_DISTRIBUTOR.0;
    let node = fdt.begin_node(&format!("interrupt-controller@{distributor:x}"))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 0)?;
    fdt.property_array_u64(
        "reg",
        &[
            distributor,
            layout::GIC_DISTRIBUTOR_SIZE,
            layout::GIC_REDISTRIBUTORS.0,
            layout::GIC_REDISTRIBUTOR_SIZE * cpus,
        ],
    )?;
    fdt.property_phandle(GIC)?;
    fdt.end_node(node)
}

/// The processors' timers (`timer/arm,arch_timer.yaml`).
fn timer(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let interrupts = TIMERS.map(|timer| [PPI, timer, LEVEL_HIGH]).concat();
    fdt.property_array_u32("interrupts", &interrupts)?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

/// A UART (`serial/8250.yaml`).
fn uart(fdt: &mut FdtWriter, address: u64, spi: u8) -> Result<(), Error> {
    let node = fdt.begin_node(&uart_name(address))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[address, layout::COM_SIZE])?;
    fdt.property_u32("reg-shift", 0)?;
    fdt.property_u32("reg-io-width", 1)?;
    fdt.property_u32("clock-frequency", COM_CLOCK)?;
    fdt.property_array_u32("interrupts", &[SPI, spi.into(), EDGE_RISING])?;
    fdt.end_node(node)
}

fn uart_name(address: u64) -> String {
    format!("serial@{address:x}")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// Returns the source of a tree, by dtc, which checks it too.
    fn decompiled(tree: &[u8]) -> String {
        let mut dtc = Command::new("dtc")
            .args(["-I", "dtb", "-O", "dts", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("dtc is there: install device-tree-compiler");
        dtc.stdin.take().unwrap().write_all(tree).unwrap();
        let ended = dtc.wait_with_output().unwrap();
        let warnings = String::from_utf8(ended.stderr).unwrap();
        assert_eq!((ended.status.success(), &*warnings), (true, ""));
        // Versions of dtc differ in how they print a list of strings.
        let source = String::from_utf8(ended.stdout).unwrap();
        source.replace("\\0", "\", \"")
    }

    #[test]
    fn the_tree_is_the_golden_one_and_has_no_warning() {
        let mut seed = [0; SEED_LEN];
        seed.iter_mut()
            .zip(1..)
            .for_each(|(byte, number)| *byte = number);
        let tree = bytes(&Tree {
            cpus: vec![0, 1, 0x1_0000_0002],
            memory: 256 << 20,
            cmdline: "console=ttyS0 panic=-1".into(),
            initramfs: Placed {
                start: 0x8f00_0000,
                size: 0x1234,
            },
            uarts: &layout::UARTS[..2],
            seed,
        });
        assert_eq!(decompiled(&tree), include_str!("tree.dts"));
    }

    #[test]
    fn a_machine_without_initramfs_has_no_place_of_one_and_com3_is_serial2() {
        let tree = bytes(&Tree {
            cpus: vec![0],
            memory: 1 << 40,
            cmdline: String::new(),
            initramfs: Placed::default(),
            uarts: &layout::UARTS,
            seed: [0; SEED_LEN],
        });
        let source = decompiled(&tree);
        assert!(!source.contains("initrd"), "{source}");
        assert!(
            source.contains("reg = <0x00 0x80000000 0x100 0x00>;"),
            "{source}"
        );
        assert!(
            source.contains("serial2 = \"/serial@9020000\";"),
            "{source}"
        );
        let (_, com3) = source.split_once("serial@9020000 {").unwrap();
        assert!(com3.contains("reg = <0x00 0x9020000 0x00 0x08>;"), "{com3}");
        assert!(com3.contains("interrupts = <0x00 0x02 0x01>;"), "{com3}");
    }
}
