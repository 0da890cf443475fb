//! Machines of a few bytes of code that make monitors do all that monitors do: boots, sessions, input of each kind, traces, snapshots, clones,
//! stops.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use minivm_guest::channel::{Exit, Hello, MAGIC, Status, Times, ToHost, VERSION};
use minivm_tests::code::{LOOP, RESET, WAIT, map, show};
use minivm_tests::given;
use minivm_tests::kernel_file::{Elf, Segment};
use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{Program, run};
use minivm_vmm::layout;
use tempfile::TempDir;

use crate::trace::{Seen, of_monitors};

/// Has COM1 interrupt whenever it has sent a byte.
#[rustfmt::skip]
const INTERRUPT: [u8; 32] = [
    0xbe, 0x00, 0x00, 0xc0, 0xfe,             // mov esi, the IOAPIC
    0xc7, 0x06, 0x18, 0x00, 0x00, 0x00,       // mov dword [rsi], 0x18: pin 4
    0xc7, 0x46, 0x10, 0x24, 0x00, 0x00, 0x00, // mov dword [rsi + 0x10], 0x24: a vector
    0x66, 0xba, 0xfc, 0x03, 0xb0, 0x08, 0xee, // mov dx, 0x3fc; mov al, 8; out dx, al: interrupts go out
    0x66, 0xba, 0xf9, 0x03, 0xb0, 0x02, 0xee, // mov dx, 0x3f9; mov al, 2; out dx, al: interrupt when sent
];

/// Takes a frame from COM2.
#[rustfmt::skip]
const TAKE: [u8; 75] = [
    0x66, 0xba, 0xf9, 0x02, 0xb0, 0x01, 0xee, // mov dx, 0x2f9; mov al, 1; out dx, al: interrupt on received data
    0x66, 0xba, 0xfc, 0x02, 0xb0, 0x02, 0xee, // mov dx, 0x2fc; mov al, 2; out dx, al: request to send
    0x31, 0xdb,                               // xor ebx, ebx
    0xb9, 0x05, 0x00, 0x00, 0x00,             // mov ecx, 5: the header
    0x66, 0xba, 0xfd, 0x02, 0xec,             // next: mov dx, 0x2fd; in al, dx: the line status
    0xa8, 0x01, 0x74, 0xfb,                   // test al, 1; jz back to the in
    0x66, 0xba, 0xf8, 0x02,                   // mov dx, 0x2f8
    0x31, 0xc0, 0xec,                         // xor eax, eax; in al, dx
    0x48, 0xc1, 0xeb, 0x08,                   // shr rbx, 8
    0x48, 0xc1, 0xe0, 0x20,                   // shl rax, 32
    0x48, 0x09, 0xc3,                         // or rbx, rax
    0xff, 0xc9, 0x75, 0xe1,                   // dec ecx; jnz next
    0x89, 0xd9, 0x67, 0xe3, 0x12,             // mov ecx, ebx: the body; jecxz behind
    0x66, 0xba, 0xfd, 0x02, 0xec,             // again: mov dx, 0x2fd; in al, dx
    0xa8, 0x01, 0x74, 0xfb,                   // test al, 1; jz back to the in
    0x66, 0xba, 0xf8, 0x02, 0xec,             // mov dx, 0x2f8; in al, dx
    0xff, 0xc9, 0x75, 0xee,                   // dec ecx; jnz again
];

/// Where a guest's messages lie.
const MESSAGES: u64 = 5 << 20;

/// The code that writes bytes of the messages to COM2.
fn say(from: usize, len: usize) -> Vec<u8> {
    let number = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
    let from = number(usize::try_from(MESSAGES).unwrap() + from);
    [
        &[0xbe][..], // mov esi, …
        &from,
        &[0xb9], // mov ecx, …
        &number(len),
        &[0x66, 0xba, 0xf8, 0x02, 0xf3, 0x6e], // mov dx, 0x2f8; rep outsb
    ]
    .concat()
}

/// A guest that sends messages and takes frames, in turn, as an init does.
fn in_turn(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut code = Vec::new();
    let mut sent = 0;
    for message in messages {
        let take: &[u8] = if sent == 0 { &[] } else { &TAKE };
        code.extend([take, &say(sent, message.len())].concat());
        sent += message.len();
    }
    let mut elf = Elf::of_code(&[&code, &LOOP]);
    elf.segments
        .push(Segment::new(MESSAGES, &messages.concat()));
    elf.bytes()
}

fn encoded(messages: &[ToHost<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    messages.iter().for_each(|it| it.encode(&mut bytes));
    bytes
}

/// Machines that are traced, one after the other.
pub(crate) struct Machines {
    folder: TempDir,
    seen: BTreeSet<Seen>,
}

impl Machines {
    pub(crate) fn new() -> Machines {
        let machines = Machines {
            folder: tempfile::tempdir().unwrap(),
            seen: BTreeSet::new(),
        };
        let write = |name: &str, bytes: &[u8]| fs::write(machines.path(name), bytes).unwrap();
        write("initramfs", &[b'x'; 3 << 20]);
        let ioapic = map(layout::IOAPIC.0);
        let guests: [(&str, &[&[u8]]); 3] = [
            ("short", &[&show(b'.'), &RESET]),
            ("interrupting", &[&ioapic, &INTERRUPT, &show(b'.'), &RESET]),
            ("waiting", &[&show(b'.'), &WAIT, &show(b'!'), &RESET]),
        ];
        for (name, code) in guests {
            write(name, &Elf::of_code(code).bytes());
        }
        let hello = ToHost::Hello(Hello {
            version: VERSION,
            rings: None,
        });
        let hello = [MAGIC.to_vec(), encoded(&[hello])].concat();
        let end = encoded(&[
            ToHost::Started,
            ToHost::Stdout(b"."),
            ToHost::Exit(Exit {
                status: Status::Code(0),
                out_of_memory: false,
                user_time: 0,
                system_time: 0,
                peak_memory: 0,
                times: Times::default(),
            }),
        ]);
        let ready = encoded(&[ToHost::Ready]);
        write("session", &in_turn(&[hello.clone(), end.clone()]));
        write("template", &in_turn(&[hello, ready, end]));
        fs::create_dir(machines.path("image")).unwrap();
        machines
    }

    /// Runs all of them; returns the calls of their monitors.
    pub(crate) fn run_all(mut self) -> BTreeSet<Seen> {
        self.boots();
        self.inputs();
        self.snapshots();
        self.sessions();
        self.templates();
        self.seen
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// minivm, under strace.
    fn traced(&self) -> Command {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "--decode-pids=pidns", "-o"]);
        strace.arg(self.path("trace"));
        strace.arg(given::minivm(env!("CARGO_BIN_EXE_minivm")));
        self.with_folders(strace)
    }

    fn with_folders(&self, mut command: Command) -> Command {
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command.env_remove("MINIVM_COLD");
        command
    }

    fn boot(&self, kernel: &str) -> Command {
        let mut command = self.traced();
        command.args(["--accel", "kvm", "--memory", "64M", "--kernel"]);
        command.arg(self.path(kernel));
        command
    }

    /// Adds what the last machine's monitors did.
    fn look(&mut self) {
        let trace = fs::read_to_string(self.path("trace")).unwrap();
        let seen = of_monitors(&trace);
        assert!(!seen.is_empty(), "{trace}");
        self.seen.extend(seen);
    }

    /// Runs a machine to its end.
    fn run(&mut self, command: &mut Command, output: &str) {
        let ended = run(command, PATIENCE);
        assert_eq!((ended.code, &*ended.text()), (Some(0), output), "{ended:?}");
        self.look();
    }

    fn boots(&mut self) {
        let mut boot = self.boot("short");
        boot.args(["--cpus", "2", "--initramfs"]);
        boot.arg(self.path("initramfs"));
        self.run(&mut boot, ".");
        let mut trace = self.boot("short");
        trace.arg(format!("--trace={}", self.path("exits").display()));
        self.run(&mut trace, ".");
        let ended = run(&mut self.boot("interrupting"), PATIENCE);
        // A reset while interrupts are in use is a panic's.
        assert_eq!((ended.code, &*ended.text()), (Some(1), "."), "{ended:?}");
        self.look();
    }

    /// Input from a pipe, from a file, and from a device.
    fn inputs(&mut self) {
        let mut machine = Program::start(&mut self.boot("waiting"));
        machine.wait_for(".", PATIENCE);
        machine.write(b"x").unwrap();
        let ended = machine.end(PATIENCE);
        assert_eq!((ended.code, &*ended.text()), (Some(0), ".!"), "{ended:?}");
        self.look();
        for source in [self.path("initramfs"), "/dev/zero".into()] {
            let mut boot = self.boot("waiting");
            boot.stdin(File::open(source).unwrap());
            let ended = boot.stderr(Stdio::piped()).output().unwrap();
            assert_eq!(ended.stdout, b".!", "{ended:?}");
            self.look();
        }
    }

    /// A machine that is saved while it runs, and saved and ended; and one that goes on from there.
    fn snapshots(&mut self) {
        let mut boot = self.boot("waiting");
        boot.arg("--control").arg(self.path("socket"));
        let mut machine = Program::start(&mut boot);
        machine.wait_for(".", PATIENCE);
        for flags in [&[][..], &["--stop"]] {
            let minivm = Command::new(given::minivm(env!("CARGO_BIN_EXE_minivm")));
            let mut client = self.with_folders(minivm);
            client.arg("snapshot").args(flags);
            client.arg(self.path("socket")).arg(self.path("saved"));
            let ended = run(&mut client, PATIENCE);
            assert_eq!(ended.code, Some(0), "{ended:?}");
        }
        let ended = machine.end(PATIENCE);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        self.look();
        let mut restore = self.traced();
        restore.args(["restore", "--accel", "kvm"]);
        restore.arg(self.path("saved"));
        let mut machine = Program::start(&mut restore);
        machine.write(b"x").unwrap();
        let ended = machine.end(PATIENCE);
        assert_eq!((ended.code, &*ended.text()), (Some(0), "!"), "{ended:?}");
        self.look();
    }

    fn minivm_run(&self, kernel: &str) -> Command {
        let mut run = self.traced();
        run.args(["run", "--accel", "kvm", "--cold", "--kernel"]);
        run.arg(self.path(kernel));
        run
    }

    /// A session, whose frames come from COM2.
    fn sessions(&mut self) {
        let image = format!("dir:{}", self.path("image").display());
        let mut session = self.minivm_run("session");
        session.args([&*image, "--", "true"]);
        self.run(&mut session, ".");
    }

    /// A template and its clone.
    fn templates(&mut self) {
        let image = format!("dir:{}", self.path("image").display());
        let mut create = self.traced();
        create.args(["template", "create", "--accel", "kvm", "--kernel"]);
        create.arg(self.path("template")).args(["made", &*image]);
        let ended = run(&mut create, PATIENCE);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        self.look();
        let mut clone = self.traced();
        clone.args(["run", "--accel", "kvm", "--template", "made", "--", "true"]);
        self.run(&mut clone, ".");
    }
}
