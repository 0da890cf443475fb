//! Guests that do what no guest should: each ends by itself, or is stopped; none harms the monitor.

use minivm_vmm::{Config, Error, Outcome, layout};

use crate::asm::{
    AFFINITY_INFO, CPU_OFF, CPU_ON, HVC, LOOP, SYSTEM_OFF, WFI, add_register, b, br, ldr, ldrb,
    mov, psci, repeat, say, skipping_faults, str, strb,
};
use crate::{Running, config, run};

#[test]
fn accesses_everywhere_below_ram_and_behind_it_do_no_harm() {
    const STEP: u64 = 1 << 20;
    // Reads and writes, of one byte and of four, at each multiple of 1 MiB: the GIC's registers, the UARTs', nothing at all, and
    // from 4 GiB on what a machine of this size has no addresses for.
    let access = [
        ldr(4, 2),
        str(4, 2),
        ldrb(4, 2),
        strb(3, 2),
        add_register(2, 5),
    ];
    let sweep = |start: u64, count: u64| [mov(2, start), repeat(6, count, &access)].concat();
    let memory = 256 << 20;
    let code = [
        mov(3, 0xff),
        mov(5, STEP),
        sweep(0, layout::RAM.0 / STEP),
        sweep(layout::RAM.0 + memory, 1000),
        sweep(1 << 32, 100),
        sweep((1 << 44) - 50 * STEP, 100),
        say(b'k'),
        psci(SYSTEM_OFF),
    ];
    let code = skipping_faults(&code.concat());
    let (outcome, output) = run(Config {
        memory,
        ..config(&code)
    });
    assert_eq!(
        (outcome.unwrap(), output.last()),
        (Outcome::PowerOff, Some(&b'k'))
    );
}

#[test]
fn calls_of_the_hypervisor_with_nonsense_do_no_harm() {
    // X19 is the state of a linear congruential generator, whose numbers are the function and its arguments.
    let random = [
        mov(21, 6_364_136_223_846_793_005),
        vec![0x9b15_7e73], // mul x19, x19, x21
        vec![0x9100_0673], // add x19, x19, #1
    ]
    .concat();
    let arguments = [
        0xaa13_03e0, // mov x0, x19
        0xaa13_03e1, // mov x1, x19
        0xaa13_03e2, // mov x2, x19
        0xaa13_03e3, // mov x3, x19
        HVC,
        HVC | 0x123 << 5, // hvc #0x123, of which KVM knows nothing
    ];
    let wrong = |function: u32, target: u64| {
        [mov(1, target), mov(2, 1), mov(3, 2), psci(function)].concat()
    };
    let code = [
        mov(19, 1),
        repeat(22, 2000, &[&random[..], &arguments].concat()),
        wrong(CPU_ON, 0),
        wrong(CPU_ON, 77),
        wrong(CPU_ON, u64::MAX),
        wrong(AFFINITY_INFO, u64::MAX),
        say(b'k'),
        psci(SYSTEM_OFF),
    ];
    let (outcome, output) = run(config(&skipping_faults(&code.concat())));
    assert_eq!(
        (outcome.unwrap(), &output[..]),
        (Outcome::PowerOff, &b"k"[..])
    );
}

#[test]
fn a_wait_for_ever_is_paused_and_stopped() {
    let running = Running::start(config(&[say(b'.'), vec![WFI, b(-1)]].concat()));
    assert_eq!(running.next(), b'.');
    running.control.pause();
    running.control.resume();
    running.stop();
}

#[test]
fn a_loop_is_paused_and_stopped_on_eight_vcpus() {
    // vCPU 0 starts the others at its own loop, the last word.
    let count = 8;
    let code = |entry: u64| {
        let others = (1..count).map(|cpu| [mov(1, cpu), mov(2, entry), psci(CPU_ON)].concat());
        let others: Vec<u32> = others.flatten().collect();
        [others, say(b'.'), vec![LOOP]].concat()
    };
    let entry = layout::KERNEL.0 + (code(layout::KERNEL.0 + 4).len() as u64 - 1) * 4;
    let running = Running::start(Config {
        cpus: 8,
        ..config(&code(entry))
    });
    assert_eq!(running.next(), b'.');
    running.control.pause();
    running.control.resume();
    running.stop();
}

#[test]
fn an_access_that_cannot_be_decoded_is_an_error_with_its_name() {
    // ldp x2, x3, [x1]: the processor doesn't describe an access of two registers.
    let code = [mov(1, 0x4000_0000), vec![0xa940_0c22, LOOP]].concat();
    match run(config(&code)).0 {
        Err(Error::Exit {
            vcpu: 0,
            reason,
            rip,
        }) => {
            assert!(reason.contains("KVM_EXIT_ARM_NISV"), "{reason}");
            assert!(
                (layout::KERNEL.0..layout::KERNEL.0 + 64).contains(&rip),
                "{rip:#x}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn code_outside_ram_is_stopped() {
    // The fault has no handler, which is outside RAM too: the guest faults for ever.
    let code = [say(b'.'), mov(1, 0x4000_0000), vec![br(1)]].concat();
    let running = Running::start(config(&code));
    assert_eq!(running.next(), b'.');
    running.stop();
}

#[test]
fn a_machine_whose_processors_are_all_off_ends() {
    let (outcome, output) = run(config(&[say(b'.'), psci(CPU_OFF), vec![LOOP]].concat()));
    assert_eq!((outcome.unwrap(), &output[..]), (Outcome::Stuck, &b"."[..]));
}
