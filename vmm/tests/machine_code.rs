//! Guests of a few bytes on the host's own KVM: a behaviour each.
//!
//! They need a `/dev/kvm` that can run machine code in ring 0; even a KVM that can't run a whole Linux often can.

// Tests run: on any KVM

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]

use std::io::{self, Write};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use minivm_tests::code::{LOOP, RESET, SHOW, map, place, wake};
use minivm_tests::input::input;
use minivm_tests::output::tap;
use minivm_tests::stress;
use minivm_vmm::{Builder, Config, Error, Kernel, Machine, Outcome, Reset, layout};

/// The limit for a hang.
const DEADLINE: Duration = Duration::from_secs(300);

fn config(code: &[&[u8]]) -> Config {
    Config::new(Kernel::Code(code.concat()))
}

/// Builds a machine that runs `code`; returns it with the receiver of its output to COM1.
fn machine(code: &[&[u8]]) -> (Machine, Receiver<u8>) {
    let (tap, output) = tap();
    (
        Builder::new(config(code))
            .console_output(tap)
            .build()
            .unwrap(),
        output,
    )
}

/// Runs `code` to its end; returns the outcome and the output to COM1.
fn run(code: &[&[u8]]) -> (Outcome, Vec<u8>) {
    let (machine, output) = machine(code);
    (run_to_end(machine), output.iter().collect())
}

/// Runs a machine to its end.
fn run_to_end(machine: Machine) -> Outcome {
    let control = machine.control();
    let watchdog = std::thread::spawn(move || {
        let start = Instant::now();
        while !control.has_ended() && start.elapsed() < DEADLINE {
            std::thread::sleep(Duration::from_millis(10));
        }
        control.stop();
    });
    let outcome = machine.run().unwrap();
    watchdog.join().unwrap();
    outcome
}

/// `mov dx, port`.
fn mov_dx(port: u16) -> [u8; 4] {
    let [low, high] = port.to_le_bytes();
    [0x66, 0xba, low, high]
}

/// `mov al, value; out dx, al`.
fn out(value: u8) -> [u8; 3] {
    [0xb0, value, 0xee]
}

/// `in al, dx`.
const IN: [u8; 1] = [0xec];

#[test]
fn a_port_write_reaches_the_console() {
    let (outcome, output) = run(&[&mov_dx(layout::COM1_PORT), &out(b'o'), &out(b'k'), &RESET]);
    assert_eq!(
        (outcome, output.as_slice()),
        (Outcome::Reboot(Reset::Line), &b"ok"[..])
    );
}

#[test]
fn an_unknown_port_reads_as_ones_and_ignores_writes() {
    let (outcome, output) = run(&[&mov_dx(0x1234), &out(7), &IN, &SHOW, &RESET]);
    assert_eq!(
        (outcome, output.as_slice()),
        (Outcome::Reboot(Reset::Line), &[0xff][..])
    );
}

#[test]
fn a_memory_mapped_register_is_read_and_written() {
    // mov esi, IOAPIC; mov dword [rsi], 1 (select the version register); mov eax, [rsi + 0x10]
    let read = [
        0xbe, 0x00, 0x00, 0xc0, 0xfe, 0xc7, 0x06, 0x01, 0x00, 0x00, 0x00, 0x8b, 0x46, 0x10,
    ];
    let (outcome, output) = run(&[&map(layout::IOAPIC.0), &read, &SHOW, &RESET]);
    assert_eq!(
        (outcome, output.as_slice()),
        (Outcome::Reboot(Reset::Line), &[0x11][..])
    );
}

#[test]
fn missing_memory_reads_as_ones() {
    // mov esi, 0xd0000000; mov al, [rsi]
    let read = [0xbe, 0x00, 0x00, 0x00, 0xd0, 0x8a, 0x06];
    let (outcome, output) = run(&[&map(0xd000_0000), &read, &SHOW, &RESET]);
    assert_eq!(
        (outcome, output.as_slice()),
        (Outcome::Reboot(Reset::Line), &[0xff][..])
    );
}

#[test]
fn halting_with_interrupts_off_is_noticed() {
    let (outcome, _) = run(&[&[0xfa, 0xf4], &LOOP]); // cli; hlt
    assert_eq!(outcome, Outcome::Stuck);
}

#[test]
fn a_machine_with_one_vcpu_halted_and_one_at_work_runs_on() {
    // The second vCPU's code, in real mode, at 0x30000: counts down for a while, says 'A', resets.
    let second = [
        0x66, 0xb9, 0x00, 0x00, 0x10, 0x00, // mov ecx, 0x100000
        0x66, 0x49, 0x75, 0xfc, // again: dec ecx; jnz again
        0xb0, b'A', 0xba, 0xf8, 0x03, 0xee, // mov al, 'A'; mov dx, 0x3f8; out dx, al
        0xb0, 0xfe, 0xe6, 0x64, // mov al, 0xfe; out 0x64, al
    ];
    let place = place(0x3_0000, &second);
    // Long enough for the first check for halted vCPUs to find the second one not started yet.
    let spin = [0xb9, 0x00, 0x00, 0x04, 0x00, 0xff, 0xc9, 0x75, 0xfc]; // mov ecx, 0x40000; dec ecx; jnz
    let wake = wake(0x30);
    let code = [
        &map(layout::LOCAL_APIC.0)[..],
        &place,
        &spin,
        &wake,
        &[0xfa, 0xf4],
    ]
    .concat();
    let (tap, output) = tap();
    let config = Config {
        cpus: 2,
        ..config(&[&code])
    };
    let outcome = Builder::new(config)
        .console_output(tap)
        .build()
        .unwrap()
        .run();
    assert_eq!(outcome.unwrap(), Outcome::Reboot(Reset::Line));
    assert_eq!(output.iter().collect::<Vec<_>>(), b"A");
}

#[test]
fn an_interrupt_for_no_local_apic_is_lost_and_nothing_else() {
    // The IOAPIC's entry of COM1 (registers 0x18 and 0x19): lowest priority, logical, to 0xff, which no local APIC is.
    let register = |number: u8, value: u32| {
        let mut code = vec![0xbe, 0x00, 0x00, 0xc0, 0xfe]; // mov esi, IOAPIC
        code.extend([0xc7, 0x06, number, 0x00, 0x00, 0x00]); // mov dword [rsi], number
        code.extend([0xc7, 0x46, 0x10]); // mov dword [rsi + 0x10], value
        code.extend(value.to_le_bytes());
        code
    };
    let route = [register(0x19, 0xff00_0000), register(0x18, 0x0931)].concat();
    let enable = [&mov_dx(layout::COM1_PORT + 1)[..], &out(2)].concat(); // interrupt when the transmitter is empty
    let say = [&mov_dx(layout::COM1_PORT)[..], &out(b'k')].concat();
    let (outcome, output) = run(&[&map(layout::IOAPIC.0), &route, &enable, &say, &RESET]);
    // Its interrupt is routed, so this reset looks like a panic's.
    assert_eq!(outcome, Outcome::Panic(Reset::Line));
    assert_eq!(output, b"k");
}

#[test]
fn a_writer_that_panics_ends_the_machine_with_an_error() {
    struct Panics;
    impl Write for Panics {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            panic!("on purpose")
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let code = config(&[&mov_dx(layout::COM1_PORT), &out(b'.'), &LOOP]);
    let ended = Builder::new(Config { cpus: 2, ..code })
        .console_output(Panics)
        .build()
        .unwrap()
        .run();
    assert!(matches!(ended, Err(Error::Output(_))), "{ended:?}");
}

#[test]
fn halting_with_interrupts_on_is_not_the_end() {
    let (machine, output) =
        machine(&[&mov_dx(layout::COM1_PORT), &out(b'.'), &[0xfb, 0xf4], &LOOP]); // sti; hlt
    let control = machine.control();
    let runner = std::thread::spawn(move || machine.run());
    assert_eq!(output.recv_timeout(DEADLINE).unwrap(), b'.');
    std::thread::sleep(Duration::from_millis(350));
    assert!(!control.has_ended());
    control.stop();
    assert_eq!(runner.join().unwrap().unwrap(), Outcome::Stopped);
}

#[test]
fn a_triple_fault_is_noticed() {
    let (outcome, _) = run(&[&[0x0f, 0x0b]]); // ud2, and no handler
    assert_eq!(outcome, Outcome::TripleFault);
}

#[test]
fn the_sleep_register_switches_the_power_off() {
    let (outcome, _) = run(&[&mov_dx(layout::ACPI_SLEEP_PORT), &out(0x34), &LOOP]);
    assert_eq!(outcome, Outcome::PowerOff);
}

#[test]
fn the_keyboard_controllers_status_is_ready() {
    let (_, output) = run(&[&mov_dx(layout::I8042_COMMAND_PORT), &IN, &SHOW, &RESET]);
    assert_eq!(output, [0]);
}

#[test]
fn a_guest_starts_with_the_zero_page_in_rsi() {
    // mov al, [rsi + 0x1fe] (the boot flag's first byte); mov dx…; out
    let (_, output) = run(&[&[0x8a, 0x86, 0xfe, 0x01, 0x00, 0x00], &SHOW, &RESET]);
    assert_eq!(output, [0x55]);
}

#[test]
fn input_of_every_byte_value_comes_back_unchanged() {
    let echo = [
        0x66, 0xba, 0xf9, 0x03, 0xb0, 0x01,
        0xee, // mov dx, 0x3f9; mov al, 1; out dx, al: interrupt on received data
        0x66, 0xba, 0xfc, 0x03, 0xb0, 0x02,
        0xee, // mov dx, 0x3fc; mov al, 2; out dx, al: request to send
        0x66, 0xba, 0xfd, 0x03,
        0xec, //          again: mov dx, 0x3fd; in al, dx: the line status
        0xa8, 0x01, 0x74, 0xf7, //                test al, 1; jz again
        0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, //    mov dx, 0x3f8; in al, dx; out dx, al
        0xeb, 0xef, //                            jmp again
    ];
    let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(1000).collect();
    let (tap, output) = tap();
    let machine = Builder::new(config(&[&echo]))
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
    assert!(
        !control.has_ended(),
        "the end of input is not the end of the guest"
    );
    control.stop();
    assert_eq!(runner.join().unwrap().unwrap(), Outcome::Stopped);
}

#[test]
fn each_uart_is_of_its_own() {
    let (taps, outputs): (Vec<_>, Vec<_>) = (0..3).map(|_| tap()).unzip();
    let [one, two, three] = taps.try_into().ok().unwrap();
    let code = config(&[
        &mov_dx(layout::COM1_PORT),
        &out(b'1'),
        &mov_dx(layout::COM2_PORT),
        &out(b'2'),
        &mov_dx(layout::COM3_PORT),
        &out(b'3'),
        &RESET,
    ]);
    let config = Config { com3: true, ..code };
    let builder = Builder::new(config).console_output(one).com2_output(two);
    let machine = builder.com3_output(three).build().unwrap();
    machine.run().unwrap();
    let outputs: Vec<Vec<u8>> = outputs
        .iter()
        .map(|output| output.iter().collect())
        .collect();
    assert_eq!(outputs, [b"1", b"2", b"3"]);
}

#[test]
fn a_machine_without_com3_has_nothing_there() {
    let (tap, com1) = tap();
    let (com3_tap, com3) = self::tap();
    let mut code = [&mov_dx(layout::COM3_PORT)[..], &out(b'3')].concat();
    for port in layout::COM3_PORT..layout::COM3_PORT + 8 {
        // in al, dx
        code.extend([&mov_dx(port)[..], &[0xec], &SHOW].concat());
    }
    let builder = Builder::new(config(&[&code, &RESET]))
        .console_output(tap)
        .com3_output(com3_tap)
        .com3_input(input(b"3"));
    builder.build().unwrap().run().unwrap();
    assert_eq!(com1.iter().collect::<Vec<_>>(), [0xff; 8]);
    assert_eq!(com3.iter().count(), 0);
}

#[test]
fn input_on_com3_raises_an_interrupt_of_its_own() {
    const HANDLER: u32 = 0x3_0000;
    const VECTOR: u8 = 0x31;
    let handler = [&mov_dx(layout::COM3_PORT)[..], &[0xec], &SHOW, &RESET].concat(); // in al, dx
    // Address and selector of an interrupt gate.
    let mut gate = (HANDLER & 0xffff | 0x10 << 16).to_le_bytes().to_vec();
    gate.extend((HANDLER & 0xffff_0000 | 0x8e00).to_le_bytes());
    let code = [
        &map(layout::LOCAL_APIC.0)[..],
        &map(layout::IOAPIC.0),
        &place(HANDLER.into(), &handler),
        &place(0x1_1000 + 16 * u64::from(VECTOR), &gate),
        // The limit 0x3ff and the address 0x11000, and `lidt [0x10000]`.
        &place(0x1_0000, &[0xff, 0x03, 0x00, 0x10, 0x01, 0, 0, 0, 0, 0]),
        &[0x0f, 0x01, 0x1c, 0x25, 0x00, 0x00, 0x01, 0x00],
        &[0xbe, 0x00, 0x00, 0xe0, 0xfe], // mov esi, the local APIC
        &[0xc7, 0x86, 0xf0, 0, 0, 0, 0xff, 0x01, 0, 0], // mov dword [rsi + 0xf0], 0x1ff: on
        &[0xbe, 0x00, 0x00, 0xc0, 0xfe], // mov esi, the IOAPIC
        &[0xc7, 0x06, 0x10 + 2 * 5, 0, 0, 0], // mov dword [rsi], the entry of pin 5
        &[0xc7, 0x46, 0x10, VECTOR, 0, 0, 0], // mov dword [rsi + 0x10], VECTOR
        &mov_dx(layout::COM3_PORT + 1),
        &out(1), // interrupt on received data
        &mov_dx(layout::COM3_PORT + 4),
        &out(2),                   // request to send
        &[0xfb, 0xf4, 0xeb, 0xfd], // sti; again: hlt; jmp again
    ];
    let (tap, output) = tap();
    let config = Config {
        com3: true,
        ..config(&code)
    };
    let builder = Builder::new(config)
        .console_output(tap)
        .com3_input(input(b"!"));
    // The interrupt is still routed when the guest resets.
    let outcome = run_to_end(builder.build().unwrap());
    assert_eq!(outcome, Outcome::Panic(Reset::Line));
    assert_eq!(output.iter().collect::<Vec<_>>(), b"!");
}

#[test]
fn a_paused_machine_stands_still_until_it_is_resumed() {
    // again: mov al, '.'; mov dx, 0x3f8; out dx, al; jmp again
    let (machine, output) = machine(&[&[0xb0, b'.'], &SHOW, &[0xeb, 0xf7]]);
    let control = machine.control();
    let runner = std::thread::spawn(move || machine.run());
    for _ in 0..stress::count(20, 1000) {
        output.recv_timeout(DEADLINE).unwrap();
        control.pause();
        while output.try_recv().is_ok() {}
        assert!(
            output.recv_timeout(Duration::from_millis(10)).is_err(),
            "it ran while it was paused"
        );
        control.resume();
    }
    output.recv_timeout(DEADLINE).unwrap();
    control.stop();
    assert_eq!(runner.join().unwrap().unwrap(), Outcome::Stopped);
}

#[test]
fn a_machine_is_stopped_in_a_loop_while_paused_and_before_it_runs() {
    for pause in [false, true] {
        let (machine, output) = machine(&[&mov_dx(layout::COM1_PORT), &out(b'.'), &LOOP]);
        let control = machine.control();
        let runner = std::thread::spawn(move || machine.run());
        output.recv_timeout(DEADLINE).unwrap();
        if pause {
            control.pause();
        }
        control.stop();
        control.stop();
        assert_eq!(runner.join().unwrap().unwrap(), Outcome::Stopped);
        control.pause();
        control.resume();
    }
    let (machine, output) = machine(&[&mov_dx(layout::COM1_PORT), &out(b'.'), &LOOP]);
    machine.control().stop();
    assert_eq!(machine.run().unwrap(), Outcome::Stopped);
    assert_eq!(output.iter().count(), 0);
}

#[test]
fn an_output_without_a_reader_ends_the_machine_with_an_error() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let code = config(&[&mov_dx(layout::COM1_PORT), &out(b'.'), &LOOP]);
    let ended = Builder::new(code)
        .console_output(writer)
        .build()
        .unwrap()
        .run();
    assert!(matches!(ended, Err(Error::Output(_))), "{ended:?}");
}

#[test]
fn a_machine_is_stopped_while_it_waits_for_its_output_to_be_taken() {
    let (reader, writer) = io::pipe().unwrap();
    let code = config(&[&[0xb0, b'.'], &SHOW, &[0xeb, 0xf7]]);
    let machine = Builder::new(code).console_output(writer).build().unwrap();
    let control = machine.control();
    let runner = std::thread::spawn(move || machine.run());
    // More than enough for a pipe of 64 KiB to be full, at 10 µs a byte.
    std::thread::sleep(Duration::from_secs(2));
    control.stop();
    assert_eq!(runner.join().unwrap().unwrap(), Outcome::Stopped);
    drop(reader);
}

#[test]
fn eight_vcpus_stop_together() {
    let (tap, output) = tap();
    let code = config(&[&mov_dx(layout::COM1_PORT), &out(b'.'), &LOOP]);
    let machine = Builder::new(Config { cpus: 8, ..code })
        .console_output(tap)
        .build()
        .unwrap();
    let control = machine.control();
    let runner = std::thread::spawn(move || machine.run());
    output.recv_timeout(DEADLINE).unwrap();
    control.pause();
    control.resume();
    control.stop();
    assert_eq!(runner.join().unwrap().unwrap(), Outcome::Stopped);
}

#[test]
fn memory_behind_the_hole_belongs_to_the_guest() {
    let show_last_byte_but_15 = [
        0x48, 0xbe, 0xf0, 0xff, 0xff, 0x3f, 0x01, 0x00, 0x00, 0x00, // mov rsi, 0x13ffffff0
        0xc6, 0x06, b'h', 0x8a,
        0x06, //                               mov byte [rsi], 'h'; mov al, [rsi]
    ];
    let (tap, output) = tap();
    let code = Config {
        memory: 4 << 30,
        ..config(&[&map(0x1_3fff_fff0), &show_last_byte_but_15, &SHOW, &RESET])
    };
    Builder::new(code)
        .console_output(tap)
        .build()
        .unwrap()
        .run()
        .unwrap();
    assert_eq!(output.iter().collect::<Vec<_>>(), b"h");
}

#[test]
fn machines_leave_nothing_behind() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mapped = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
    };
    let build = |count: usize| {
        for index in 0..count {
            let (machine, _output) = machine(&[&RESET]);
            if index % 10 == 0 {
                machine.run().unwrap();
            }
        }
    };
    build(10);
    let (descriptors_before, mapped_before) = (descriptors(), mapped());
    build(stress::count(1000, 20_000));
    // Tests beside this one come and go; a leak would show a thousandfold.
    assert!(
        descriptors() < descriptors_before + 100,
        "{} → {}",
        descriptors_before,
        descriptors()
    );
    assert!(
        mapped() < mapped_before + (20 << 30),
        "{} → {}",
        mapped_before,
        mapped()
    );
}
