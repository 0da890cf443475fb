//! What the machine does for a guest.

use minivm_tests::input::input;
use minivm_tests::output::tap;
use minivm_tests::stress;
use minivm_vmm::{Builder, Config, Outcome, Reset, layout};

use crate::asm::{
    AFFINITY_INFO, CPU_OFF, CPU_ON, LOOP, SYSTEM_OFF, SYSTEM_RESET, SYSTEM_RESET2, add, b, cbnz,
    cbz, ldr, ldrb, mov, psci, say, show, str, strb, sub,
};
use crate::{DEADLINE, Running, config, run};

#[test]
fn psci_ends_the_machine() {
    for (function, end) in [
        (SYSTEM_OFF, Outcome::PowerOff),
        (SYSTEM_RESET, Outcome::Reboot(Reset::Line)),
        (SYSTEM_RESET2, Outcome::Panic(Reset::Line)),
    ] {
        let code = [say(b'o'), say(b'k'), mov(1, 0), psci(function), vec![LOOP]].concat();
        let (outcome, output) = run(config(&code));
        assert_eq!((outcome.unwrap(), &output[..]), (end, &b"ok"[..]));
    }
}

#[test]
fn a_guest_starts_with_the_tree_in_x0() {
    let next = [ldrb(2, 0), add(0, 1)];
    let byte = [&next[..], &show(2)].concat();
    let code = [
        byte.clone(),
        byte.clone(),
        byte.clone(),
        byte,
        psci(SYSTEM_OFF),
    ]
    .concat();
    let (_, output) = run(config(&code));
    assert_eq!(output, [0xd0, 0x0d, 0xfe, 0xed]);
}

#[test]
fn all_of_a_large_memory_is_the_guests() {
    let end = layout::RAM.0 + (4 << 30);
    let code = [
        mov(1, end - 1),
        mov(2, b'h'.into()),
        vec![strb(2, 1), ldrb(3, 1)],
        show(3),
        psci(SYSTEM_OFF),
    ];
    let config = Config {
        memory: 4 << 30,
        ..config(&code.concat())
    };
    let (outcome, output) = run(config);
    assert_eq!(
        (outcome.unwrap(), &output[..]),
        (Outcome::PowerOff, &b"h"[..])
    );
}

#[test]
fn a_wide_access_reaches_one_register() {
    // Writes four bytes to COM1's data register, and reads four from its modem control register, in which only OUT2 is set.
    let code = [
        mov(1, layout::COM1.0),
        mov(2, 0x4443_4241),
        vec![str(2, 1)],
        mov(1, layout::COM1.0 + 4),
        vec![ldr(3, 1)],
        mov(1, layout::KERNEL.0 + 0x1_0000),
        vec![str(3, 1)],
        (0..4)
            .flat_map(|_| [&[ldrb(4, 1), add(1, 1)][..], &show(4)].concat())
            .collect(),
        psci(SYSTEM_OFF),
    ];
    let (outcome, output) = run(config(&code.concat()));
    assert_eq!(
        (outcome.unwrap(), &output[..]),
        (Outcome::PowerOff, &[b'A', 8, 0, 0, 0][..])
    );
}

#[test]
fn com2_and_com3_are_uarts_of_their_own() {
    let write =
        |uart: u64, byte: u8| [mov(1, uart), mov(2, byte.into()), vec![strb(2, 1)]].concat();
    let code = [
        say(b'1'),
        write(layout::COM2.0, b'2'),
        write(layout::COM3.0, b'3'),
        psci(SYSTEM_OFF),
    ];
    for com3 in [true, false] {
        let ((two, com2), (three, output)) = (tap(), tap());
        let config = Config {
            com3,
            ..config(&code.concat())
        };
        let builder = Builder::new(config).com2_output(two).com3_output(three);
        builder.build().unwrap().run().unwrap();
        assert_eq!(com2.iter().collect::<Vec<_>>(), b"2");
        let expected: &[u8] = if com3 { b"3" } else { b"" };
        assert_eq!(output.iter().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn input_of_every_byte_value_comes_back_unchanged() {
    // Interrupt on received data, and request to send; then: wait for data in the line status, read, write.
    let register = |number: u64| mov(1, layout::COM1.0 + number);
    let code = [
        register(1),
        mov(2, 1),
        vec![strb(2, 1)],
        register(4),
        mov(2, 2),
        vec![strb(2, 1)],
        register(5),
        mov(4, layout::COM1.0),
        vec![
            ldrb(2, 1),
            0x9240_0042, // and x2, x2, #1
            cbz(2, -2),
            ldrb(2, 4),
            strb(2, 4),
            b(-5),
        ],
    ];
    let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(1000).collect();
    let (tap, output) = tap();
    let machine = Builder::new(config(&code.concat()))
        .console_output(tap)
        .console_input(input(&bytes))
        .build()
        .unwrap();
    let control = machine.control();
    let runner = std::thread::spawn(move || machine.run());
    let echoed: Vec<u8> = (0..1000)
        .map(|_| output.recv_timeout(DEADLINE).unwrap())
        .collect();
    assert_eq!(echoed, bytes);
    control.stop();
    assert_eq!(runner.join().unwrap().unwrap(), Outcome::Stopped);
}

#[test]
fn a_pause_neither_loses_nor_repeats_an_access() {
    // Counts: writes the number to COM1's scratch register, reads it back, and says what it has read.
    let code = [
        mov(1, layout::COM1.0 + 7),
        mov(2, 0),
        mov(9, layout::COM1.0),
        vec![strb(2, 1), ldrb(3, 1), strb(3, 9), add(2, 1), b(-4)],
    ];
    let running = Running::start(config(&code.concat()));
    let mut expected = 0u8;
    let mut check = |byte| {
        assert_eq!(byte, expected);
        expected = expected.wrapping_add(1);
    };
    for _ in 0..stress::count(30, 1000) {
        check(running.next());
        running.control.pause();
        running.output.try_iter().for_each(&mut check);
        running.control.resume();
    }
    check(running.next());
    running.stop();
}

#[test]
fn secondary_processors_start_and_switch_themselves_off() {
    // vCPU 0 starts each of the others at `others`, waits until it is off, and goes on with the next one.
    let on = |cpu: u64, others: u64| {
        let wait = [mov(1, cpu), mov(2, 0), psci(AFFINITY_INFO)].concat();
        let back = -(i32::try_from(wait.len()).unwrap() + 1);
        [
            mov(1, cpu),
            mov(2, others),
            mov(3, u64::from(b'0') + cpu),
            psci(CPU_ON),
            wait,
            vec![sub(0, 1), cbnz(0, back)],
        ]
        .concat()
    };
    let code = |others: u64| {
        let all: Vec<u32> = (1..4).flat_map(|cpu| on(cpu, others)).collect();
        [all, psci(SYSTEM_OFF), vec![LOOP]].concat()
    };
    // Both have the same length: the addresses have as many halves.
    let others = layout::KERNEL.0 + code(layout::KERNEL.0 + 4).len() as u64 * 4;
    let part = [show(0), psci(CPU_OFF), vec![LOOP]].concat();
    let config = Config {
        cpus: 4,
        ..config(&[code(others), part].concat())
    };
    let (outcome, output) = run(config);
    assert_eq!(
        (outcome.unwrap(), &output[..]),
        (Outcome::PowerOff, &b"123"[..])
    );
}
