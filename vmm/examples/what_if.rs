//! What if? The monitor of `raw_kvm.rs` with one thing changed: `what_if CHANGE` prints what then happens, and why.
//!
//! ```console
//! $ cargo run -q -p minivm-vmm --example what_if -- --list
//! $ cargo run -q -p minivm-vmm --example what_if -- no-page-tables
//! ```
//!
//! Most changes leave something out, one at a time; two add what `minivm` has and `raw_kvm` hasn't. `docs/learn/ablations.md`
//! shows them all.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, io, thread};

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_MP_STATE_HALTED, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::Bytes;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use raw_kvm::{CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, GUEST, PROGRAM};

#[path = "raw_kvm.rs"]
#[allow(dead_code, reason = "its `main` is its own")]
mod raw_kvm;

/// The pins of the IOAPIC that a program with a split irqchip emulates. This one has no use for any.
const PINS: u64 = 24;
/// The interval at which a vCPU's thread is called out of `KVM_RUN`.
const KICK: Duration = Duration::from_millis(100);
/// The kicks after which a guest is given up that neither ends nor halts.
const KICKS: usize = 20;

/// A change: its name, what it is, and why it ends as it does.
struct Change {
    name: &'static str,
    what: &'static str,
    why: &'static str,
}

const fn change(name: &'static str, what: &'static str, why: &'static str) -> Change {
    Change { name, what, why }
}

/// All changes, in the order of the page.
const CHANGES: &[Change] = &[
    change(
        "no-page-tables",
        "without the page tables",
        "no address has a translation: the first instruction is a page fault, its handler another, \
         and the third shuts a processor down (triple fault)",
    ),
    change(
        "no-cr0-pg",
        "without CR0.PG",
        "EFER.LMA says that long mode is on, and without paging it can't be",
    ),
    change(
        "no-efer-lme",
        "without EFER.LME",
        "EFER.LMA says that long mode is on, and where it isn't enabled it can't be",
    ),
    change(
        "no-cs-l",
        "without CS.L",
        "the segment is 16-bit code now: prefix 0x66 makes of `mov dx, 0x3f8` the longer `mov edx, 0x68b003f8`, \
         which swallows `mov al, 'h'`; AL is still 0",
    ),
    change(
        "split-irqchip",
        "with a split irqchip",
        "KVM has a local APIC now, and waits in HLT for an interrupt itself",
    ),
    change(
        "late-split-irqchip",
        "with a split irqchip after the vCPU",
        "it decides what a vCPU is made with, and this one is made",
    ),
    change(
        "no-cr0-pe",
        "without CR0.PE",
        "paging is for protected mode alone",
    ),
    change(
        "no-cr4-pae",
        "without CR4.PAE",
        "long mode's page tables are PAE's, with entries of 64 bits",
    ),
    change(
        "no-efer-lma",
        "without EFER.LMA",
        "with paging on and long mode enabled, long mode is on",
    ),
    change(
        "no-sregs",
        "without KVM_SET_SREGS",
        "the processor starts in real mode at 0xffff0000 + 0x4000, where a PC has its firmware, and here is no memory",
    ),
    change(
        "no-tss-address",
        "without KVM_SET_TSS_ADDR",
        "Intel processors that can't run real mode need its three pages, and no others",
    ),
    change(
        "no-cpuid",
        "without KVM_SET_CPUID2",
        "the guest's processor has no features then, long mode neither; \
         some KVMs look for that when it is switched on, some don't",
    ),
    change(
        "no-memory",
        "without KVM_SET_USER_MEMORY_REGION",
        "the page tables can't be read; some KVMs make a triple fault of that, some try the first instruction again and again, some give up",
    ),
];

/// The end of a run.
enum Ended {
    /// A call failed before the guest ran.
    Failed(&'static str, io::Error),
    /// KVM_RUN returned with an exit that isn't a byte for COM1.
    Exit(&'static str),
    /// KVM_RUN returned for signals alone; whether the vCPU is halted, and its RIP.
    Stayed { halted: bool, rip: u64 },
}

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] | ["--help" | "-h" | "--list"] => {
            println!("usage: what_if CHANGE, which is one of");
            for Change { name, what, .. } in CHANGES {
                println!("  {name:<20} raw_kvm {what}");
            }
            ExitCode::SUCCESS
        }
        [word] => match CHANGES.iter().find(|change| change.name == word) {
            Some(change) => show(change),
            None => refuse(&format!("there is no change {word:?}; --list shows them")),
        },
        _ => refuse("one change at a time; --list shows them"),
    }
}

/// Reports wrong usage.
fn refuse(why: &str) -> ExitCode {
    eprintln!("what_if: {why}");
    ExitCode::from(2)
}

/// Prints what the change leads to, and why.
fn show(change: &Change) -> ExitCode {
    let mut output = Vec::new();
    let ended = match monitor(change.name, &mut output) {
        Ok(ended) => ended,
        Err(error) => {
            eprintln!("what_if: {error}");
            return ExitCode::FAILURE;
        }
    };
    let wrote = match String::from_utf8_lossy(&output) {
        text if text.is_empty() => "nothing".to_owned(),
        text => format!("{text:?}"),
    };
    let what = match ended {
        Ended::Failed(call, error) => format!("{call} fails: {error}"),
        Ended::Exit(exit) => format!("the guest writes {wrote}, then KVM_RUN returns {exit}"),
        Ended::Stayed { halted: true, .. } => format!(
            "the guest writes {wrote}, then KVM_RUN doesn't return; KVM_GET_MP_STATE says that the vCPU is halted"
        ),
        Ended::Stayed { rip, .. } => format!(
            "the guest writes {wrote}, then KVM_RUN doesn't return; KVM_GET_MP_STATE says that the vCPU runs, at {rip:#x}"
        ),
    };
    println!("{}: {what}\nbecause {}", change.what, change.why);
    ExitCode::SUCCESS
}

/// Does what `raw_kvm` does, but for `change`; what the guest writes goes to `output`.
fn monitor(change: &str, output: &mut Vec<u8>) -> Result<Ended, Box<dyn Error>> {
    let ram = raw_kvm::ram()?;
    if change != "no-page-tables" {
        raw_kvm::write_page_tables(&ram)?;
    }
    ram.write_slice(&GUEST, PROGRAM)?;

    let kvm = raw_kvm::open_kvm()?;
    let vm = match change {
        "no-tss-address" => kvm.create_vm()?,
        _ => raw_kvm::create_vm(&kvm)?,
    };
    if change != "no-memory" {
        raw_kvm::lend_memory(&vm, &ram)?;
    }
    if change == "split-irqchip" {
        split_irqchip(&vm)?;
    }
    let vcpu = raw_kvm::create_vcpu(&vm)?;
    if change == "late-split-irqchip"
        && let Err(error) = split_irqchip(&vm)
    {
        return Ok(Ended::Failed("KVM_ENABLE_CAP", error));
    }
    if change != "no-cpuid" {
        raw_kvm::set_features(&kvm, &vcpu)?;
    }
    if change != "no-sregs"
        && let Err(error) = set_mode(change, &vcpu)
    {
        return Ok(Ended::Failed("KVM_SET_SREGS", error));
    }
    raw_kvm::set_start(&vcpu)?;
    run(vcpu, output)
}

/// Puts the processor into 64-bit mode, but for the change.
fn set_mode(change: &str, vcpu: &VcpuFd) -> io::Result<()> {
    let mut sregs = raw_kvm::long_mode(vcpu)?;
    match change {
        "no-cr0-pe" => sregs.cr0 &= !CR0_PE,
        "no-cr0-pg" => sregs.cr0 &= !CR0_PG,
        "no-cr4-pae" => sregs.cr4 &= !CR4_PAE,
        "no-efer-lme" => sregs.efer &= !EFER_LME,
        "no-efer-lma" => sregs.efer &= !EFER_LMA,
        "no-cs-l" => sregs.cs.l = 0,
        _ => {}
    }
    raw_kvm::set_mode(vcpu, &sregs)
}

/// Has KVM emulate local APICs.
fn split_irqchip(vm: &VmFd) -> io::Result<()> {
    // 4.37 KVM_ENABLE_CAP with 7.5 KVM_CAP_SPLIT_IRQCHIP: a local APIC for each vCPU in KVM, an IOAPIC in this process.
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    cap.args[0] = PINS;
    Ok(vm.enable_cap(&cap)?)
}

/// Runs the guest in a thread of its own, which a signal calls out of KVM_RUN again and again, so that this ends in any case.
fn run(mut vcpu: VcpuFd, output: &mut Vec<u8>) -> Result<Ended, Box<dyn Error>> {
    register_signal_handler(SIGRTMIN(), ignore)?;
    let runner = thread::spawn(move || {
        let mut output = Vec::new();
        (run_until_kicked(&mut vcpu, &mut output), output)
    });
    while !runner.is_finished() {
        thread::sleep(KICK);
        // Fails where the thread has just ended.
        let _ = runner.kill(SIGRTMIN());
    }
    let (ended, wrote) = runner.join().map_err(|_| "the vCPU's thread panicked")?;
    *output = wrote;
    Ok(ended?)
}

/// Runs the guest to an exit, or until it is found halted, or hasn't come to an end for long.
fn run_until_kicked(vcpu: &mut VcpuFd, output: &mut Vec<u8>) -> io::Result<Ended> {
    for _ in 0..KICKS {
        match raw_kvm::run(vcpu, output) {
            Ok(exits) => return Ok(Ended::Exit(exits[exits.len() - 1])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Ended::Failed("KVM_RUN", error)),
        }
        // 4.38 KVM_GET_MP_STATE: returns whether the vCPU runs, or is halted inside KVM.
        if vcpu.get_mp_state()?.mp_state == KVM_MP_STATE_HALTED {
            return stayed(vcpu, true);
        }
    }
    stayed(vcpu, false)
}

fn stayed(vcpu: &VcpuFd, halted: bool) -> io::Result<Ended> {
    // 4.11 KVM_GET_REGS: reads the general registers.
    let rip = vcpu.get_regs()?.rip;
    Ok(Ended::Stayed { halted, rip })
}

/// The signal's only purpose is to end a system call.
extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
