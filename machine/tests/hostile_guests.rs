//! Sessions with hostile guests. A guest owns its memory and its UART, and so its end of the channel. Whatever it does with them, the
//! session returns a result or an error in time.
//!
//! The guests are machine code on the host's own KVM, with their rings laid out by their kernel's file.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[cfg_attr(target_arch = "aarch64", path = "guest_code/aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "guest_code/x86_64.rs")]
mod guest_code;
mod messages;

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use minivm_guest::channel::ring::{
    DIRECTORY_ADDRESSES, DIRECTORY_FOLDERS, DIRECTORY_MAGIC, DIRECTORY_PAGES, Direction, PAGE, Word,
};
use minivm_guest::channel::{Hello, MAGIC, Request, STDIN_WINDOW, ToHost, VERSION};
use minivm_machine::session::Event;
use minivm_machine::signal::TERM;
use minivm_machine::{Accel, CopyIn, End, Error, Link, MachineSpec, Session};
use minivm_tests::growth::{alone, check};
use minivm_tests::output::Shared;
use minivm_tests::patience::PATIENCE;
use minivm_tests::stress;
use proptest::prelude::*;

use guest_code::{LOOP, RAM, count_for_ever, ring_folders, say, say_for_ever, take_for_ever};
use messages::{attack, exit, told};

/// The time limit of guests that never get to a command's end.
const SOON: Duration = Duration::from_millis(500);
/// The time limit where there are many of them.
const BRIEF: Duration = Duration::from_millis(50);
/// The guests' memory.
const MEMORY: u64 = 64 << 20;

/// Addresses of what the guests write to COM2, of the ring directory, and of the pages.
const WORDS: u64 = RAM + (4 << 20);
const DIRECTORY: u64 = RAM + (6 << 20);
const PAGES: u64 = RAM + (8 << 20);
/// The same for the folders' rings.
const FOLDERS: u64 = RAM + (10 << 20);
const FOLDER_PAGES: u64 = RAM + (12 << 20);
/// The first address behind the guests' memory.
const MEMORY_END: u64 = RAM + MEMORY;

/// A guest's memory and code.
struct Guest {
    hello: Vec<u8>,
    pages: u32,
    directory: Vec<u8>,
    ring: Vec<u8>,
    /// The folders' ring directory, and what is in their ring to the host.
    folders: Option<(Vec<u8>, Vec<u8>)>,
    /// The code after the hello.
    code: Vec<u8>,
    /// How long it may take until it has started a command.
    boot_limit: Duration,
    timeout: Duration,
}

impl Guest {
    /// Makes a guest with rings of one page each, and these messages in the ring to the host.
    fn new(messages: &[ToHost]) -> Self {
        let ring = encoded(messages);
        assert!(ring.len() <= PAGE);
        let mut guest = Guest {
            hello: hello(Some(DIRECTORY)),
            pages: 1,
            directory: Vec::new(),
            code: LOOP.to_vec(),
            boot_limit: PATIENCE,
            timeout: PATIENCE,
            folders: None,
            ring,
        };
        guest.directory = directory(PAGES, &guest.ring);
        guest
    }

    /// Gives the guest rings for folders, with these bytes in the one to the host, and has it ring for them: again and again, for it
    /// doesn't wait until the host has read its hello.
    fn with_folders(mut self, bytes: &[u8]) -> Self {
        self.folders = Some((directory(FOLDER_PAGES, bytes), bytes.to_vec()));
        self.put(DIRECTORY_FOLDERS, &FOLDERS.to_le_bytes());
        self.code = ring_folders(true);
        self
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.directory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn word(&mut self, direction: Direction, word: Word, value: u32) {
        self.put(word.offset(direction), &value.to_le_bytes());
    }

    /// Sets rings of so many pages, all with one address.
    fn pages(&mut self, pages: u32) {
        self.pages = pages;
        self.put(DIRECTORY_PAGES, &pages.to_le_bytes());
        let room = (PAGE - DIRECTORY_ADDRESSES) / 8;
        for index in 0..room.min(2 * pages as usize) {
            self.put(DIRECTORY_ADDRESSES + 8 * index, &PAGES.to_le_bytes());
        }
    }

    fn kernel(&self) -> Vec<u8> {
        let mut data = vec![
            (WORDS, &self.hello[..]),
            (DIRECTORY, &self.directory),
            (PAGES, &self.ring),
        ];
        if let Some((directory, ring)) = &self.folders {
            data.extend([(FOLDERS, &directory[..]), (FOLDER_PAGES, ring)]);
        }
        guest_code::kernel(&[&say(self.hello.len()), &self.code], &data)
    }

    /// Runs a session with it; returns how it ended, and its stdout.
    fn session(&self) -> (Result<End, Error>, Vec<u8>) {
        run(&self.kernel(), self.boot_limit, self.timeout)
    }

    fn told(&self) -> String {
        told(self.session().0)
    }
}

/// Makes the directory of rings of one page each, with these bytes in the one to the host.
fn directory(pages: u64, to_host: &[u8]) -> Vec<u8> {
    let mut directory = vec![0; PAGE];
    let mut put = |at: usize, bytes: &[u8]| directory[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &DIRECTORY_MAGIC);
    put(DIRECTORY_PAGES, &1_u32.to_le_bytes());
    put(DIRECTORY_ADDRESSES, &pages.to_le_bytes());
    put(
        DIRECTORY_ADDRESSES + 8,
        &(pages + PAGE as u64).to_le_bytes(),
    );
    let produced = u32::try_from(to_host.len()).unwrap();
    put(
        Word::Produced.offset(Direction::ToHost),
        &produced.to_le_bytes(),
    );
    directory
}

fn hello(rings: Option<u64>) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let version = VERSION;
    ToHost::Hello(Hello { version, rings }).encode(&mut bytes);
    bytes
}

/// Makes a file in a test's folder.
fn file(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Makes a machine whose kernel's file has these bytes.
fn machine(folder: &tempfile::TempDir, kernel: &[u8]) -> MachineSpec {
    MachineSpec {
        kernel: file(folder, "kernel", kernel),
        initramfs: file(folder, "initramfs", b"none"),
        image: None,
        memory: MEMORY,
        cpus: 1,
        rings: true,
        console: false,
        cpu_quota: None,
    }
}

/// Runs a session with a kernel's file of these bytes, on a thread of its own, so that a session that hangs fails the test.
fn run(kernel: &[u8], boot_limit: Duration, timeout: Duration) -> (Result<End, Error>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let machine = machine(&folder, kernel);
    let stdout = Shared::default();
    let (_happen, events) = channel();
    // More input than any ring holds.
    let stdin = std::fs::File::open("/dev/zero").unwrap();
    let session = Session {
        stdin: Some(stdin.into()),
        stdout: Box::new(stdout.clone()),
        boot_limit,
        timeout: Some(timeout),
        events,
        ..Session::new(Request {
            argv: vec![vec![b'x'; 100_000]],
            ..Request::default()
        })
    };
    let (report, reported) = channel();
    std::thread::spawn(move || {
        let link = machine.start(&Accel::Kvm).unwrap();
        report.send(session.run(link)).unwrap();
    });
    let result = reported
        .recv_timeout(PATIENCE)
        .expect("the session ends, and does not panic");
    let stdout = stdout.bytes();
    (result.map(|report| report.end), stdout)
}

#[test]
fn a_well_behaved_guest_runs_its_command() {
    let guest = Guest::new(&[
        ToHost::Started,
        ToHost::Room(STDIN_WINDOW),
        ToHost::Stdout(b"4\n"),
        exit(3),
    ]);
    let (result, stdout) = guest.session();
    assert_eq!(result.unwrap(), End::Exited(3));
    assert_eq!(stdout, b"4\n");
}

/// An output that takes nothing until the other end of this is gone.
struct Blocked(Receiver<()>);

impl Write for Blocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn input_is_sent_while_the_output_takes_nothing() {
    let mut guest = Guest::new(&[
        ToHost::Started,
        ToHost::Room(STDIN_WINDOW),
        ToHost::Stdout(b"x"),
    ]);
    guest.code = take_for_ever();
    let folder = tempfile::tempdir().unwrap();
    let machine = machine(&folder, &guest.kernel());
    let (stdin, mut input) = io::pipe().unwrap();
    let (unblock, blocked) = channel();
    let (happen, events) = channel();
    let session = Session {
        pending: minivm_machine::output::Pending::default(),
        request: Request::default(),
        stdin: Some(stdin.into()),
        stdout: Box::new(Blocked(blocked)),
        stderr: Box::new(io::sink()),
        boot_limit: PATIENCE,
        timeout: None,
        max_output: None,
        volumes: Vec::new(),
        copy_in: CopyIn::default(),
        copy_out: Vec::new(),
        max_copy_out: 0,
        copy_out_grace: None,
        stop_signal: TERM,
        events,
        overdue: None,
    };
    let (report, reported) = channel();
    std::thread::spawn(move || {
        let link = machine.start(&Accel::Kvm).unwrap();
        report.send(session.run(link)).unwrap();
    });
    let (took, taken) = channel();
    std::thread::spawn(move || {
        // Far more than the pipe, a message and the ring hold, and less than the window.
        let _ = took.send(input.write_all(&[7; 220 << 10]));
    });
    taken.recv_timeout(PATIENCE).expect("it is taken").unwrap();
    happen.send(Event::Stop(2)).unwrap();
    drop(unblock);
    let report = reported.recv_timeout(PATIENCE).expect("it ends").unwrap();
    assert_eq!(report.end, End::Stopped(2));
}

#[test]
fn a_machine_whose_link_is_dropped_ends() {
    let folder = tempfile::tempdir().unwrap();
    let machine = machine(&folder, &guest_code::kernel(&[&LOOP], &[]));
    let Link { stop, end, .. } = machine.start(&Accel::Kvm).unwrap();
    drop(stop);
    let (sender, ended) = channel();
    std::thread::spawn(move || sender.send(end().unwrap().orderly).unwrap());
    assert_eq!(ended.recv_timeout(PATIENCE), Ok(true));
}

#[test]
fn rings_that_are_not_in_memory_are_refused() {
    let page = PAGE as u64;
    for directory in [
        MEMORY_END,
        MEMORY_END - page + 1,
        0xfee0_0000,
        u64::MAX,
        u64::MAX - page + 1,
        1 << 40,
        4,
        DIRECTORY + 4,
    ] {
        let mut guest = Guest::new(&[]);
        guest.hello = hello(Some(directory));
        let told = guest.told();
        let said = "the guest broke the protocol: the guest's rings are not in its memory";
        assert!(told.starts_with(said), "{directory:#x}: {told}");
    }
    for address in [MEMORY_END, u64::MAX, PAGES + 8, !0xfff] {
        for place in [DIRECTORY_ADDRESSES, DIRECTORY_ADDRESSES + 8] {
            let mut guest = Guest::new(&[]);
            guest.put(place, &address.to_le_bytes());
            let told = guest.told();
            assert!(
                told.contains("the guest's rings are not in its memory"),
                "{address:#x}: {told}"
            );
        }
    }
}

#[test]
fn an_invalid_ring_directory_is_refused() {
    let mut guest = Guest::new(&[]);
    guest.put(0, b"RINGS v1");
    assert!(
        guest
            .told()
            .contains("no ring directory at the address the guest gave")
    );
    for pages in [0, 3, 127, 129, 256, u32::MAX, 1 << 31] {
        let mut guest = Guest::new(&[]);
        guest.pages(pages);
        let told = guest.told();
        assert!(
            told.contains(&format!("the guest's rings have {pages} pages each")),
            "{told}"
        );
    }
}

#[test]
fn impossible_ring_positions_are_refused() {
    for (direction, word, value) in [
        (
            Direction::ToHost,
            Word::Produced,
            u32::try_from(PAGE).unwrap() + 1,
        ),
        (Direction::ToHost, Word::Produced, u32::MAX),
        (Direction::ToHost, Word::Consumed, 1 << 31),
    ] {
        let mut guest = Guest::new(&[]);
        guest.word(direction, word, value);
        let told = guest.told();
        assert!(
            told.contains("the ring in guest memory is corrupt"),
            "{value:#x}: {told}"
        );
    }
    // Nothing can be sent to this guest; its time limit ends it.
    let mut guest = Guest::new(&[ToHost::Started, ToHost::Room(u32::MAX)]);
    guest.word(Direction::ToGuest, Word::Consumed, 1 << 31);
    guest.timeout = SOON;
    assert_eq!(guest.session().0.unwrap(), End::TimedOut);
}

#[test]
fn a_ring_position_that_counts_for_ever_is_refused() {
    // It rings: a host that has just taken all that was there, while the guest's thread waits for a processor, sleeps until then.
    let mut guest = Guest::new(&[ToHost::Started]);
    guest.code = count_for_ever(DIRECTORY + Word::Produced.offset(Direction::ToHost) as u64);
    let told = guest.told();
    assert!(told.starts_with("the guest broke the protocol: "), "{told}");
}

#[test]
fn rings_that_share_one_page_do_no_harm() {
    for pages in [1, 2, 128] {
        let mut guest = Guest::new(&[ToHost::Started, ToHost::Room(u32::MAX)]);
        guest.pages(pages);
        (guest.boot_limit, guest.timeout) = (SOON, SOON);
        // What the host sends overwrites what it reads: whatever that is, the session ends.
        let _ = guest.session();
        // The directory as a page of the rings: what the host sends overwrites the positions.
        guest.put(
            DIRECTORY_ADDRESSES + 8 * pages as usize,
            &DIRECTORY.to_le_bytes(),
        );
        let _ = guest.session();
    }
}

#[test]
fn endless_bells_are_not_messages() {
    // The bells are the hello's own bytes, again and again.
    let mut guest = Guest::new(&[]);
    guest.code = say_for_ever(guest.hello.len());
    guest.boot_limit = SOON;
    assert!(matches!(guest.session().0, Err(Error::NoInit(SOON))));
    let mut guest = Guest::new(&[ToHost::Started, ToHost::Room(u32::MAX)]);
    guest.code = say_for_ever(guest.hello.len());
    guest.timeout = SOON;
    assert_eq!(guest.session().0.unwrap(), End::TimedOut);
    // The host reads no bells of this guest, for its ring is broken; the machine is stopped nevertheless.
    let mut guest = Guest::new(&[ToHost::Started, ToHost::Room(u32::MAX)]);
    guest.ring.extend([0xff; 5]);
    guest.word(
        Direction::ToHost,
        Word::Produced,
        u32::try_from(guest.ring.len()).unwrap(),
    );
    guest.code = say_for_ever(guest.hello.len());
    assert!(
        guest
            .told()
            .contains("a frame of 4294967295 bytes was announced")
    );
    guest.word(Direction::ToHost, Word::Produced, u32::MAX);
    assert!(guest.told().contains("the ring in guest memory is corrupt"));
}

#[test]
fn a_silent_guest_ends_at_the_boot_limit() {
    assert!(matches!(
        run(&guest_code::kernel(&[&LOOP], &[]), SOON, PATIENCE).0,
        Err(Error::NoInit(SOON))
    ));
    // A part of the hello only.
    let mut guest = Guest::new(&[]);
    guest.hello.truncate(MAGIC.len() + 3);
    guest.boot_limit = SOON;
    assert!(matches!(guest.session().0, Err(Error::NoInit(SOON))));
}

#[test]
fn endless_noise_before_the_hello_is_refused() {
    for (hello, said) in [
        (
            b"no message at all".repeat(5000),
            "the guest sent no hello in its first 65536 bytes on COM2",
        ),
        (
            [&MAGIC[..], &[0xff; 5]].concat(),
            "a frame of 4294967295 bytes was announced",
        ),
        (
            [&MAGIC[..], &[0, 0, 15, 0, 0x81], &[0; 500]].concat(),
            "the guest's first message is not a hello",
        ),
        (
            [&MAGIC[..], &[1, 0, 0, 0, 0x82, 0]].concat(),
            "the guest's first message is not a hello",
        ),
    ] {
        let mut guest = Guest::new(&[]);
        guest.hello = hello;
        guest.code = say_for_ever(guest.hello.len());
        // It takes some 64 KiB of noise, each byte an exit.
        let told = guest.told();
        assert!(told.contains(said), "{said}: {told}");
    }
}

#[test]
fn a_guest_that_floods_the_uart_is_stopped() {
    // Without rings every byte belongs to a frame, and the bytes before the second hello are not a frame's header.
    let mut guest = Guest::new(&[]);
    guest.hello = hello(None);
    ToHost::Started.encode(&mut guest.hello);
    guest.code = say_for_ever(guest.hello.len());
    let told = guest.told();
    assert!(told.ends_with("the most is 1048576"), "{told}");
}

/// Starts a machine whose hello is read by a thread. Returns its folders' stream and its stop.
fn folders_of(guest: &Guest) -> (std::os::unix::net::UnixStream, Box<dyn Fn() + Send + Sync>) {
    let folder = tempfile::tempdir().unwrap();
    let link = machine(&folder, &guest.kernel()).start(&Accel::Kvm);
    let Link {
        mut from_guest,
        folders,
        stop,
        ..
    } = link.unwrap();
    std::thread::spawn(move || io::copy(&mut from_guest, &mut io::sink()));
    let folders = folders.unwrap();
    folders.set_read_timeout(Some(PATIENCE)).unwrap();
    (folders, stop)
}

#[test]
fn folders_have_rings_of_their_own() {
    let guest = Guest::new(&[]).with_folders(b"a guest's message");
    let (mut folders, stop) = folders_of(&guest);
    let mut message = [0; 17];
    folders.read_exact(&mut message).unwrap();
    assert_eq!(&message, b"a guest's message");
    // Half of it stays in the stream: this guest takes nothing.
    folders.write_all(&[7; 2 * PAGE]).unwrap();
    stop();
    assert_eq!(folders.read(&mut message).unwrap(), 0);
}

/// A guest that lies about them loses its folders, and nothing else.
#[test]
fn rings_for_folders_that_cannot_be_have_no_messages() {
    let address = |address: u64| (DIRECTORY_FOLDERS, address.to_le_bytes().to_vec());
    let folders_word = |direction, word: Word, value: u32| {
        let bytes = value.to_le_bytes().to_vec();
        (word.offset(direction), bytes)
    };
    let good = [ToHost::Started, exit(3)];
    for (of_folders, (at, bytes)) in [
        (false, address(MEMORY_END)),
        (false, address(u64::MAX)),
        (false, address(FOLDERS + 4)),
        (false, address(PAGES)),
        (true, (0, b"RINGS v1".to_vec())),
        (true, (DIRECTORY_PAGES, 3_u32.to_le_bytes().to_vec())),
        (
            true,
            (DIRECTORY_ADDRESSES, MEMORY_END.to_le_bytes().to_vec()),
        ),
        (
            true,
            folders_word(Direction::ToHost, Word::Produced, u32::MAX),
        ),
    ] {
        let mut guest = Guest::new(&good).with_folders(b"x");
        let directory = match (of_folders, &mut guest.folders) {
            (true, Some((directory, _))) => directory,
            _ => &mut guest.directory,
        };
        directory[at..at + bytes.len()].copy_from_slice(&bytes);
        let (mut folders, stop) = folders_of(&guest);
        let ended = folders.read(&mut [0]);
        assert_eq!(ended.unwrap(), 0, "{at} {bytes:x?}");
        stop();
        assert_eq!(guest.session().0.unwrap(), End::Exited(3));
    }
    // All of them in the directory of the control channel itself.
    let mut guest = Guest::new(&good).with_folders(b"");
    guest.put(DIRECTORY_FOLDERS, &DIRECTORY.to_le_bytes());
    assert_eq!(guest.session().0.unwrap(), End::Exited(3));
}

#[test]
fn bells_for_no_folders_are_taken_and_nothing_more() {
    for (messages, end) in [
        (vec![ToHost::Started, exit(3)], End::Exited(3)),
        (vec![ToHost::Started], End::TimedOut),
    ] {
        let mut guest = Guest::new(&messages);
        guest.code = ring_folders(true);
        guest.timeout = SOON;
        assert_eq!(guest.session().0.unwrap(), end);
    }
}

/// What a hostile guest does once it has greeted the host.
fn behaviour() -> impl Strategy<Value = Vec<u8>> {
    let produced = DIRECTORY + Word::Produced.offset(Direction::ToHost) as u64;
    prop_oneof![
        3 => Just(LOOP.to_vec()),
        1 => Just(take_for_ever()),
        1 => Just(count_for_ever(produced)),
        1 => (1..200_usize).prop_map(say_for_ever),
        1 => any::<bool>().prop_map(|for_ever| [ring_folders(for_ever), LOOP.to_vec()].concat()),
    ]
}

/// Numbers at places of the directory: in its words, its number of pages, its addresses.
fn lies() -> impl Strategy<Value = Vec<(usize, u32)>> {
    let words = [Direction::ToHost, Direction::ToGuest]
        .into_iter()
        .flat_map(|direction| {
            let all = [
                Word::Produced,
                Word::Consumed,
                Word::WantsData,
                Word::WantsRoom,
            ];
            all.map(|word| word.offset(direction))
        });
    let fields = [
        DIRECTORY_FOLDERS,
        DIRECTORY_PAGES,
        DIRECTORY_ADDRESSES,
        DIRECTORY_ADDRESSES + 8,
        DIRECTORY_ADDRESSES + 12,
    ];
    let places: Vec<usize> = words.chain(fields).collect();
    let number = prop_oneof![
        0..5000_u32,
        any::<u32>(),
        (0..20_u32).prop_map(|bit| 1 << bit)
    ];
    prop::collection::vec((prop::sample::select(places), number), 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: stress::count(40, 3000),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// The guest's memory, its positions and its UART are whatever an attacker likes, before the session and meanwhile.
    #[test]
    fn whatever_a_guest_does_with_its_rings_and_its_uart_the_session_ends(
        messages in attack::stream(vec![encoded(&[ToHost::Started]), encoded(&[ToHost::FilesOf(0, None)])]),
        by_rings: bool,
        code in behaviour(),
        lies in lies(),
    ) {
        let mut guest = Guest::new(&[]);
        match by_rings {
            true => {
                guest.ring = messages;
                guest.ring.truncate(PAGE);
                guest.word(Direction::ToHost, Word::Produced, u32::try_from(guest.ring.len()).unwrap());
                lies.iter().for_each(|(at, number)| guest.put(*at, &number.to_le_bytes()));
            }
            false => guest.hello = [hello(None), messages].concat(),
        }
        guest.code = code;
        (guest.boot_limit, guest.timeout) = (BRIEF, BRIEF);
        let (result, stdout) = guest.session();
        prop_assert!(stdout.len() < 1 << 20);
        if result.is_err() {
            let line = told(result);
            prop_assert!(line.len() < 2000 && !line.contains(char::is_control), "{:?}", line);
        }
    }
}

#[test]
fn sessions_with_hostile_guests_leave_nothing_behind() {
    alone("sessions_with_hostile_guests_leave_nothing_behind", || {
        check(stress::count(3, 1000), || {
            let start = [ToHost::Started, ToHost::Room(u32::MAX)];
            let mut endless = Guest::new(&start);
            endless.code = say_for_ever(endless.hello.len());
            endless.timeout = BRIEF;
            assert_eq!(endless.session().0.unwrap(), End::TimedOut);
            let mut corrupt = Guest::new(&start);
            corrupt.word(Direction::ToHost, Word::Produced, u32::MAX);
            corrupt.told();
            let mut silent = Guest::new(&[]);
            silent.hello.clear();
            silent.boot_limit = BRIEF;
            silent.told();
            let good = Guest::new(&[ToHost::Started, exit(3)]);
            assert_eq!(good.session().0.unwrap(), End::Exited(3));
        });
    });
}

/// The encoded messages.
fn encoded(messages: &[ToHost]) -> Vec<u8> {
    let mut bytes = Vec::new();
    messages
        .iter()
        .for_each(|message| message.encode(&mut bytes));
    bytes
}
