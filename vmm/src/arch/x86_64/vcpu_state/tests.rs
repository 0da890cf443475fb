//! A vCPU's state, in which nothing has its initial value, is unchanged after it was set in another machine. The tests need a
//! `/dev/kvm`; no guest runs.

use std::sync::Arc;

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW, kvm_dtable, kvm_segment,
};
use vm_memory::GuestAddress;

use super::*;
use crate::arch::create;
use crate::arch::x86_64::{paging, registers};
use crate::kvm;
use crate::memory::GuestRam;
use crate::observer::Steps;

/// A machine whose vCPUs have never run. Its fields are dropped in their order.
struct Bare {
    vcpus: Vec<Vcpu>,
    vm: Arc<VmFd>,
    kvm: Arc<Kvm>,
    _ram: Arc<GuestRam>,
}

impl Bare {
    fn new(cpus: u8) -> Self {
        let kvm = Arc::new(kvm::open_kvm().unwrap());
        let ram = GuestRam::new(64 << 20).unwrap();
        paging::write(ram.map()).unwrap();
        let vcpus = |vm: &VmFd| create::create_vcpus(&kvm, vm, cpus);
        let steps = Steps::default();
        let created = kvm::create(kvm.clone(), Arc::new(ram), vcpus, steps).unwrap();
        Bare {
            vcpus: created.vcpus,
            vm: created.vm,
            kvm,
            _ram: created.ram,
        }
    }

    fn state(&self, vcpu: usize) -> VcpuState {
        let inventory = Inventory::of_this_host(&self.kvm, &self.vm).unwrap();
        VcpuState::of(&self.vcpus[vcpu], &inventory).unwrap()
    }
}

/// Returns a generator of numbers that are all different.
fn unlike(from: u64) -> impl FnMut() -> u64 {
    let mut number = from;
    move || {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        number
    }
}

fn set_registers(vcpu: &VcpuFd) {
    registers::set_entry(vcpu, GuestAddress(0x10_0000)).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    let segment = |selector, base, type_| kvm_segment {
        selector,
        base,
        limit: 0xfffff,
        type_,
        ..paging::data_segment()
    };
    (sregs.ds, sregs.es) = (segment(0x18, 0, 3), segment(0x18, 0, 3));
    (sregs.fs, sregs.gs) = (
        segment(0x20, 0x7f12_3456_7000, 3),
        segment(0x28, 0x6e12_3456_7000, 3),
    );
    sregs.ldt = kvm_segment {
        base: 0x5_0000,
        limit: 0xfff,
        selector: 0x30,
        type_: 2,
        present: 1,
        ..Default::default()
    };
    let table = |base, limit| kvm_dtable {
        base,
        limit,
        ..Default::default()
    };
    (sregs.gdt, sregs.idt) = (table(0x6_0000, 0x7f), table(0x7_0000, 0xfff));
    // CR0: monitor, numeric error, write protect. CR4: debugging extensions, global pages, SSE.
    sregs.cr0 |= 1 << 1 | 1 << 5 | 1 << 16;
    sregs.cr2 = 0xdead_beef_f00d;
    sregs.cr4 |= 1 << 3 | 1 << 7 | 1 << 9 | 1 << 10;
    sregs.cr8 = 5;
    // EFER: system call extensions.
    sregs.efer |= 1;
    vcpu.set_sregs(&sregs).unwrap();
    let mut next = unlike(1);
    let regs = kvm_regs {
        rax: next(),
        rbx: next(),
        rcx: next(),
        rdx: next(),
        rsi: next(),
        rdi: next(),
        rsp: next(),
        rbp: next(),
        r8: next(),
        r9: next(),
        r10: next(),
        r11: next(),
        r12: next(),
        r13: next(),
        r14: next(),
        r15: next(),
        rip: 0x12_3456,
        rflags: 0x2 | 0x8d5 | 1 << 18,
    };
    vcpu.set_regs(&regs).unwrap();
    let debug_regs = kvm_debugregs {
        db: [0x1111_0000, 0x2222_0000, 0x3333_0000, 0x4444_0000],
        dr6: 0xffff_0ff0 | 0x400f,
        dr7: 0x400 | 0x0155,
        ..Default::default()
    };
    vcpu.set_debug_regs(&debug_regs).unwrap();
}

/// Fills every part of the extended state that this host's KVM has.
fn set_extended_state(vcpu: &Vcpu) {
    let entries = vcpu.features.as_slice();
    let features = cpuid::leaf(entries, cpuid::FEATURES, 0).unwrap();
    // The lab's processor has no XSAVE: there it is what FXSAVE has.
    let mut parts = 3;
    if features.ecx & 1 << 26 != 0 {
        let entry = cpuid::leaf(entries, cpuid::XSAVE, 0).unwrap();
        parts = u64::from(entry.eax);
        let mut xcrs = vcpu.fd.get_xcrs().unwrap();
        xcrs.nr_xcrs = 1;
        xcrs.xcrs[0].value = parts;
        vcpu.fd.set_xcrs(&xcrs).unwrap();
    }
    let mut bytes = [0u8; 4096];
    let mut next = unlike(2);
    let mut fill = |bytes: &mut [u8]| bytes.fill_with(|| next().to_le_bytes()[3]);
    // Control, status (the stack's top is register 7), tags, the last operation, its places, SSE's control.
    bytes[..8].copy_from_slice(&[0x7f, 0x02, 0x00, 0x38, 0xa5, 0x00, 0x34, 0x02]);
    bytes[8..16].copy_from_slice(&0x7fff_1234u64.to_le_bytes());
    bytes[16..24].copy_from_slice(&0x7fff_5678u64.to_le_bytes());
    bytes[24..28].copy_from_slice(&0x3fa0u32.to_le_bytes());
    for register in 0..8 {
        fill(&mut bytes[32 + register * 16..][..10]);
    }
    fill(&mut bytes[160..416]);
    bytes[512..520].copy_from_slice(&parts.to_le_bytes());
    for part in (2..63).filter(|part| parts & 1 << part != 0) {
        let entry = cpuid::leaf(entries, cpuid::XSAVE, part).unwrap();
        let (at, length) = (entry.ebx as usize, entry.eax as usize);
        // Protection keys have 4 of their 8 bytes.
        let used = if part == 9 { 4 } else { length };
        fill(&mut bytes[at..at + used]);
    }
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().unwrap());
    }
    // SAFETY: as in `VcpuState::set_extended_state`.
    unsafe { vcpu.fd.set_xsave(&xsave) }.unwrap();
}

/// The values for MSRs that take few; all others get a bit more or less.
const VALUES: [(u32, u64); 12] = [
    (0x174, 0x10),
    (0x175, 0xffff_8000_1234_5000),
    (0x176, 0xffff_8000_1234_6000),
    (0x277, 0x0106_0504_0007_0001),
    (0xc000_0081, 0x0023_0010_0000_0000),
    (0xc000_0082, 0xffff_8000_0000_1000),
    (0xc000_0083, 0xffff_8000_0000_2000),
    (0xc000_0084, 0x4_7700),
    (0xc000_0102, 0xffff_8880_0000_3000),
    (0x2ff, 0x0c06),
    (0x4b56_4d01, 0x20_1001),
    (0x12, 0x20_1001),
];

/// The MSRs that every KVM must let a guest change.
const KNOWN: [u32; 9] = [
    0x174,
    0x175,
    0x176,
    0x277,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
];

fn try_msr(vcpu: &VcpuFd, index: u32, data: u64) -> bool {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = kvm_bindings::Msrs::from_entries(&[entry]).unwrap();
    vcpu.set_msrs(&entries).is_ok_and(|set| set == 1)
        && msrs::read(vcpu, &[index])
            .unwrap()
            .first()
            .map(|msr| msr.data)
            == Some(data)
}

/// Changes every MSR that can be changed, also those that are in no list; returns their numbers.
fn set_msrs(vcpu: &VcpuFd, state: &VcpuState) -> Vec<u32> {
    let mut changed = Vec::new();
    // The types of the fixed ranges, the variable ones, an error bank's registers.
    let fixed = (0x250..0x270).map(|index| (index, 0x0606_0504_0105_0606));
    let variable = (0..8).flat_map(|range| {
        let base = (0x200 + 2 * range, u64::from(range + 1) << 24 | 6);
        [base, (base.0 + 1, 0xff_ff00_0800)]
    });
    let errors = [(0x400, !0), (0x402, 0x1234_5678), (0x47c, !0)];
    for (index, data) in fixed.chain(variable).chain(errors) {
        if try_msr(vcpu, index, data) {
            changed.push(index);
        }
    }
    for msr in state.msrs.iter().filter(|msr| msr.index != MSR_TSC) {
        let known = VALUES.iter().find(|(index, _)| *index == msr.index);
        let bits = (0..64).map(|bit| msr.data ^ 1 << bit);
        let mut values = known.map(|(_, value)| *value).into_iter().chain(bits);
        if !changed.contains(&msr.index)
            && values.any(|value| value != msr.data && try_msr(vcpu, msr.index, value))
        {
            changed.push(msr.index);
        }
    }
    changed
}

/// Offsets in the local APIC's register page.
const TIMER: usize = 0x320;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;

/// The local APIC's timer: once, again and again, by the time stamp counter (Intel SDM vol. 3, "APIC Timer").
const MODES: [u32; 3] = [0, 1 << 17, 1 << 18];

fn set_local_apic(vcpu: &VcpuFd, mode: u32) {
    let mut apic = vcpu.get_lapic().unwrap();
    let deadline = mode == MODES[2];
    let registers = [
        // Task priority (as CR8), logical destination, its format, on.
        (0x80, 0x50),
        (0xd0, 0x0400_0000),
        (0xe0, 0x0fff_ffff),
        (0xf0, 0x1fe),
        // In service, level triggered, requested: vectors 0x62, 0x63 and 0x85.
        (0x130, 1 << 2),
        (0x1b0, 1 << 3),
        (0x240, 1 << 5),
        // The last message, and the local interrupts.
        (0x300, 0x40_8042),
        (0x310, 0x0200_0000),
        (TIMER, mode | 0xe1),
        (0x330, 1 << 16 | 0xe2),
        (0x340, 1 << 16 | 0xe3),
        (0x350, 1 << 16 | 0xe4),
        (0x360, 0x400),
        (0x370, 0xe5),
        (TIMER_INITIAL, if deadline { 0 } else { 0xf000_0000 }),
        (0x3e0, 0xa),
    ];
    for (offset, value) in registers {
        registers::set_apic_register(&mut apic, offset, value);
    }
    vcpu.set_lapic(&apic).unwrap();
    if deadline {
        assert!(try_msr(vcpu, MSR_TSC_DEADLINE, 1 << 60));
    }
}

fn set_events(vcpu: &VcpuFd) {
    let mut events = vcpu.get_vcpu_events().unwrap();
    events.exception.injected = 1;
    events.exception.nr = 14;
    events.exception.has_error_code = 1;
    events.exception.error_code = 6;
    events.interrupt.injected = 1;
    events.interrupt.nr = 0x71;
    events.interrupt.shadow = 1;
    events.nmi.pending = 1;
    events.nmi.masked = 1;
    events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    vcpu.set_vcpu_events(&events).unwrap();
}

fn apic_register(apic: &kvm_lapic_state, offset: usize) -> u32 {
    let bytes: [i8; 4] = apic.regs[offset..offset + 4].try_into().unwrap();
    u32::from_le_bytes(bytes.map(|byte| byte.to_le_bytes()[0]))
}

fn value(state: &VcpuState, index: u32) -> Option<u64> {
    let msr = state.msrs.iter().find(|msr| msr.index == index);
    msr.map(|msr| msr.data)
}

/// Compares two states, but for what runs: the counter, and the timer that counts down.
fn assert_same(before: &VcpuState, after: &VcpuState) {
    assert_eq!(before.cpuid, after.cpuid);
    assert_eq!(before.mp_state, after.mp_state);
    assert_eq!(before.regs, after.regs);
    assert_eq!(before.sregs, after.sregs);
    assert_eq!(before.xcrs, after.xcrs);
    let differ = (0..1024).find(|&word| before.xsave.region[word] != after.xsave.region[word]);
    assert_eq!(differ, None, "a word of the extended state");
    assert_eq!(before.debug_regs, after.debug_regs);
    assert_eq!(before.events, after.events);
    assert_eq!(before.tsc_deadline, after.tsc_deadline);
    for offset in (0..1024).step_by(4).filter(|at| *at != TIMER_CURRENT) {
        let [was, is] = [before, after].map(|state| apic_register(&state.lapic, offset));
        assert_eq!(was, is, "the local APIC's register at {offset:#x}");
    }
    let [was, is] = [before, after].map(|state| apic_register(&state.lapic, TIMER_CURRENT));
    assert!(is <= was, "the timer went back: {was:#x}, {is:#x}");
    let indices = |state: &VcpuState| state.msrs.iter().map(|msr| msr.index).collect::<Vec<_>>();
    assert_eq!(indices(before), indices(after));
    for msr in before.msrs.iter().filter(|msr| msr.index != MSR_TSC) {
        assert_eq!(
            Some(msr.data),
            value(after, msr.index),
            "MSR {:#x}",
            msr.index
        );
    }
}

#[test]
fn a_vcpus_whole_state_is_equal_in_another_machine() {
    for mode in MODES {
        let machine = Bare::new(1);
        let vcpu = &machine.vcpus[0];
        let first = machine.state(0);
        set_registers(&vcpu.fd);
        set_extended_state(vcpu);
        let changed = set_msrs(&vcpu.fd, &first);
        set_local_apic(&vcpu.fd, mode);
        let halted = kvm_mp_state {
            mp_state: KVM_MP_STATE_HALTED,
        };
        vcpu.fd.set_mp_state(halted).unwrap();
        set_events(&vcpu.fd);
        let before = machine.state(0);
        // No value that was set is lost already.
        for index in KNOWN
            .into_iter()
            .chain(0x200..0x210)
            .chain([0x250, 0x26f, 0x2ff, 0x400])
        {
            assert!(changed.contains(&index), "MSR {index:#x} can't be changed");
            assert_ne!(value(&before, index), value(&first, index), "{index:#x}");
        }
        assert_ne!(before.regs, first.regs);
        assert_ne!(before.xsave.region[..128], first.xsave.region[..128]);
        assert_ne!(before.events, first.events);
        assert_eq!(apic_register(&before.lapic, TIMER) & (3 << 17), mode);
        assert_eq!(
            before.tsc_deadline.is_some_and(|msr| msr.data != 0),
            mode == MODES[2]
        );

        let other = Bare::new(1);
        before.set_cpuid(&other.vcpus[0].fd).unwrap();
        before.set(&other.vcpus[0]).unwrap();
        let after = other.state(0);
        assert_same(&before, &after);
        assert!(value(&after, MSR_TSC) >= value(&before, MSR_TSC));
    }
}

/// The counters aren't compared: KVM sets all to the first one's, which was read a little earlier.
#[test]
fn the_multiprocessing_state_of_each_vcpu_is_restored() {
    let states = [
        KVM_MP_STATE_RUNNABLE,
        KVM_MP_STATE_UNINITIALIZED,
        KVM_MP_STATE_INIT_RECEIVED,
        KVM_MP_STATE_HALTED,
        KVM_MP_STATE_SIPI_RECEIVED,
    ];
    let (machine, other) = (Bare::new(5), Bare::new(5));
    for (vcpu, mp_state) in machine.vcpus.iter().zip(states) {
        vcpu.fd.set_mp_state(kvm_mp_state { mp_state }).unwrap();
    }
    for (number, vcpu) in other.vcpus.iter().enumerate() {
        let before = machine.state(number);
        before.set_cpuid(&vcpu.fd).unwrap();
        before.set(vcpu).unwrap();
        assert_same(&before, &other.state(number));
    }
}

#[test]
fn hidden_features_are_taken_out_of_a_forged_table() {
    let machine = Bare::new(1);
    let mut state = machine.state(0);
    for entry in &mut state.cpuid {
        match entry.function {
            // vmx and pdcm, svm
            0x1 => entry.ecx |= 1 << 5 | 1 << 15,
            0x8000_0001 => entry.ecx |= 1 << 2,
            _ => {}
        }
    }
    state.cpuid.push(kvm_cpuid_entry2 {
        function: 0x8000_000a,
        edx: !0,
        ..Default::default()
    });
    let table = state.set_cpuid(&Bare::new(1).vcpus[0].fd).unwrap();
    let bits = |function| cpuid::leaf(table.as_slice(), function, 0).map(|entry| entry.ecx);
    assert_eq!(bits(0x1).unwrap() & (1 << 5 | 1 << 15), 0);
    assert_eq!(bits(0x8000_0001).unwrap() & 1 << 2, 0);
    assert_eq!(bits(0x8000_000a), None);
}
