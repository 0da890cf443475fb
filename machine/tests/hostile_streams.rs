//! Sessions with guests that send anything. Whatever a guest sends, the session returns a result or an error, in time and with little
//! memory.
//!
//! There is no machine here: a script plays the guest's side of the link. Files that it sends are unpacked as minivm has it, by processes
//! behind walls.

// Tests run: here

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]
#![allow(
    unsafe_code,
    reason = "a program that is its own unpacker finds that out before its main"
)]

mod messages;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use minivm_guest::channel::frame::{self, BODY_MAX};
use minivm_guest::channel::{
    Hello, KernelLog, LOG_MAX, Refusal, Request, STDIN_WINDOW, Status, ToGuest, ToHost, VERSION,
    Window,
};
use minivm_guest::newc::{Archive, Attributes};
use minivm_machine::session::Event;
use minivm_machine::signal::TERM;
use minivm_machine::{CopyIn, End, Ended, Error, Files, Link, Report, Session, Warning, copy_out};
use minivm_tests::fork::{Ended as Exited, forked};
use minivm_tests::output::Shared;
use minivm_tests::patience::{PATIENCE, wait_until, with_limits_from};
use minivm_tests::processes::{self, Process};
use minivm_tests::stress;
use proptest::prelude::*;
use rustix::process::{Pid, Signal, kill_process};

use messages::{attack, exit, told};

/// Lets this program be an unpacker as `minivm` is, whose `main` begins with that: the harness's `main` would run tests instead.
#[used]
#[unsafe(link_section = ".init_array")]
static ANSWER: extern "C" fn() = answer;

extern "C" fn answer() {
    if copy_out::answer(processes::command_line()).is_some() {
        std::process::exit(0);
    }
}

/// The time limit of guests that never get to a command's end.
const SOON: Duration = Duration::from_millis(300);

/// The guest's behaviour when it has sent everything.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Ends,
    /// Waits until it is stopped.
    Waits,
    /// Sends its bytes from this place on again and again, until it is stopped.
    Repeats(usize),
}

/// An event that a guest waits for before it sends more.
#[derive(Clone, Copy)]
enum Until {
    /// The machine was stopped: the guest sends more nevertheless.
    Stopped,
    /// The guest was sent so many messages that begin so.
    Sent(usize, &'static str),
    /// There is a file of this name.
    Exists(&'static Path),
}

/// The stream of a scripted guest.
struct Script {
    words: Vec<u8>,
    said: usize,
    /// The event that it waits for once it has sent so many bytes.
    waits: Option<(usize, Until)>,
    sent: Weak<Mutex<Vec<u8>>>,
    then: Then,
    stopped: Receiver<()>,
}

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut end = self.words.len();
        match self.waits {
            Some((at, _)) if self.said < at => end = at,
            Some((_, until)) => {
                self.wait(until);
                self.waits = None;
            }
            None => {}
        }
        if self.said == self.words.len() {
            match self.then {
                Then::Ends => return Ok(0),
                Then::Waits => {
                    self.stopped.recv().unwrap();
                    self.then = Then::Ends;
                    return Ok(0);
                }
                Then::Repeats(_) if self.stopped.try_recv().is_ok() => {
                    self.then = Then::Ends;
                    return Ok(0);
                }
                Then::Repeats(from) => self.said = from,
            }
        }
        let len = (&self.words[self.said..end]).read(buffer)?;
        self.said += len;
        Ok(len)
    }
}

impl Script {
    fn wait(&mut self, until: Until) {
        match until {
            Until::Stopped => {
                self.stopped.recv().unwrap();
                self.then = Then::Ends;
            }
            Until::Sent(count, begins) => {
                let sent = self.sent.upgrade().unwrap();
                let are_sent = || {
                    let told = told_guest(&sent);
                    told.iter().filter(|told| told.starts_with(begins)).count() >= count
                };
                while !are_sent() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Until::Exists(path) => wait_until("the guest waits for a file", || path.exists()),
        }
    }
}

/// Decodes the messages that the guest was sent.
fn told_guest(sent: &Mutex<Vec<u8>>) -> Vec<String> {
    let mut decoder = frame::Decoder::default();
    decoder.extend(&sent.lock().unwrap());
    let mut told = Vec::new();
    while let Some((tag, body)) = decoder.next().unwrap() {
        told.push(format!("{:?}", ToGuest::decode(tag, body).unwrap()));
    }
    told
}

/// The result of a scene.
struct Played {
    result: Result<Report, Error>,
    /// How many references to the stream to the guest are left.
    held: usize,
    stopped: bool,
}

/// A session with a scripted guest.
struct Scene {
    /// Whether the guest's hello was read before, see `Link::greeted`.
    greeted: bool,
    request: Request,
    words: Vec<u8>,
    then: Then,
    boot_limit: Duration,
    timeout: Option<Duration>,
    max_output: Option<u64>,
    max_copy_out: u64,
    copy_out_grace: Option<Duration>,
    copy_out: Vec<Files>,
    waits: Option<(usize, Until)>,
    stdin: Option<OwnedFd>,
    events: Vec<Event>,
    /// An event that happens once this file exists.
    later: Option<(PathBuf, Event)>,
    stop_signal: u8,
    stdout: Shared,
    /// The bytes that the guest was sent.
    sent: Shared,
}

impl Scene {
    fn new(words: Vec<u8>, then: Then) -> Self {
        Scene {
            request: Request {
                argv: vec![b"true".to_vec()],
                ..Request::default()
            },
            words,
            then,
            boot_limit: PATIENCE,
            timeout: None,
            max_output: None,
            max_copy_out: 1 << 20,
            copy_out_grace: None,
            copy_out: Vec::new(),
            waits: None,
            stdin: None,
            events: Vec::new(),
            later: None,
            greeted: false,
            stop_signal: TERM,
            stdout: Shared::default(),
            sent: Shared::default(),
        }
    }

    /// Runs it on a thread of its own, so that a session that hangs fails the test.
    fn play(self) -> Result<Report, Error> {
        let Played { result, .. } = self.play_and_look();
        result
    }

    /// Runs it likewise, and returns as well what is left of the machine while the events' sender still exists.
    fn play_and_look(self) -> Played {
        let (stop, stopped) = channel();
        let (happen, events) = channel();
        let script = Script {
            words: self.words,
            said: 0,
            then: self.then,
            waits: self.waits,
            sent: Arc::downgrade(&self.sent.0),
            stopped,
        };
        let sent = Arc::downgrade(&self.sent.0);
        let was_stopped = Arc::new(AtomicBool::new(false));
        let stops = was_stopped.clone();
        let link = Link {
            walls: None,
            greeted: self.greeted,
            from_guest: Box::new(script),
            to_guest: Box::new(self.sent),
            folders: None,
            stop: Box::new(move || {
                stops.store(true, Ordering::SeqCst);
                // It fails where the session has ended.
                let _ = stop.send(());
            }),
            end: Box::new(|| {
                Ok(Ended {
                    host_memory: None,
                    orderly: true,
                    how: "the script is over".into(),
                })
            }),
        };
        self.events
            .into_iter()
            .for_each(|event| happen.send(event).unwrap());
        let session = Session {
            pending: minivm_machine::output::Pending::default(),
            request: self.request,
            stdin: self.stdin,
            stdout: Box::new(self.stdout),
            stderr: Box::new(io::sink()),
            boot_limit: self.boot_limit,
            timeout: self.timeout,
            max_output: self.max_output,
            volumes: Vec::new(),
            copy_in: CopyIn::default(),
            copy_out: self.copy_out,
            max_copy_out: self.max_copy_out,
            copy_out_grace: self.copy_out_grace,
            stop_signal: self.stop_signal,
            events,
            overdue: None,
        };
        let (report, reported) = channel();
        std::thread::spawn(move || {
            let result = session.run(link);
            report.send(result).unwrap();
        });
        if let Some((seen, event)) = self.later {
            let began = Instant::now();
            while !seen.exists() {
                assert!(began.elapsed() < PATIENCE, "{} comes", seen.display());
                std::thread::sleep(Duration::from_millis(1));
            }
            happen.send(event).unwrap();
        }
        let result = reported.recv_timeout(PATIENCE);
        let held = sent.strong_count();
        drop(happen);
        Played {
            result: result.expect("the session ends, and does not panic"),
            held,
            stopped: was_stopped.load(Ordering::SeqCst),
        }
    }
}

fn encoded(messages: &[ToHost]) -> Vec<u8> {
    let mut words = Vec::new();
    messages
        .iter()
        .for_each(|message| message.encode(&mut words));
    words
}

fn hello() -> ToHost<'static> {
    ToHost::Hello(Hello {
        version: VERSION,
        rings: None,
    })
}

/// Runs a session with a guest that sends these bytes; returns how it ended.
fn result(words: Vec<u8>, then: Then) -> Result<End, Error> {
    Scene::new(words, then).play().map(|report| report.end)
}

#[test]
fn a_well_behaved_guest_runs_its_command() {
    let words = encoded(&[hello(), ToHost::Started, ToHost::Stdout(b"4\n"), exit(3)]);
    let scene = Scene::new(words, Then::Waits);
    let stdout = scene.stdout.clone();
    let report = scene.play().unwrap();
    assert_eq!(report.end, End::Exited(3));
    assert_eq!(report.exit.unwrap().status, Status::Code(3));
    assert_eq!(stdout.bytes(), b"4\n");
}

#[test]
fn a_greeted_clone_gets_its_request_at_once_and_may_send_no_hello() {
    let words = encoded(&[ToHost::Started, ToHost::Stdout(b"4\n"), exit(3)]);
    let mut scene = Scene::new(words, Then::Waits);
    scene.greeted = true;
    // The session hangs if the request isn't sent before this guest says anything.
    scene.waits = Some((0, Until::Sent(1, "Request")));
    assert_eq!(scene.play().unwrap().end, End::Exited(3));
    let mut scene = Scene::new(encoded(&[hello()]), Then::Waits);
    scene.greeted = true;
    let told = told(scene.play());
    assert!(told.contains("out of order: a hello"), "{told}");
}

/// Held by tests that measure this process's memory, or take much of it.
static MEMORY: Mutex<()> = Mutex::new(());

#[test]
fn a_request_that_fits_no_message_is_refused() {
    let _alone = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    let long = "x".repeat(2 * BODY_MAX);
    for request in [
        Request {
            user: long.clone(),
            ..Request::default()
        },
        Request {
            hostname: long.clone(),
            ..Request::default()
        },
        Request {
            env: vec![b"A=".to_vec(); BODY_MAX / 2],
            ..Request::default()
        },
    ] {
        let mut scene = Scene::new(encoded(&[hello()]), Then::Waits);
        scene.request = request;
        let played = scene.play_and_look();
        assert!(played.stopped && played.held == 0, "{}", played.held);
        let told = told(played.result);
        assert!(told.contains("too long: "), "{told}");
    }
}

#[test]
fn a_session_that_is_over_holds_nothing_of_its_machine() {
    let words = encoded(&[hello(), ToHost::Started, exit(0)]);
    for then in [Then::Ends, Then::Waits] {
        let played = Scene::new(words.clone(), then).play_and_look();
        played.result.unwrap();
        assert_eq!((played.held, played.stopped), (0, true));
    }
}

#[test]
fn bytes_that_are_no_message_end_the_session() {
    let after_hello = |bytes: &[u8]| [encoded(&[hello()]), bytes.to_vec()].concat();
    let header = |len: u32, tag: u8| [&len.to_le_bytes()[..], &[tag]].concat();
    for (words, said) in [
        (
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            "a frame of 542393671 bytes was announced",
        ),
        (
            header(u32::MAX, 0x85),
            "a frame of 4294967295 bytes was announced",
        ),
        (
            after_hello(&header(u32::MAX, 0x85)),
            "a frame of 4294967295 bytes was announced",
        ),
        (
            after_hello(&header(u32::try_from(BODY_MAX + 1).unwrap(), 0x85)),
            "a frame of 1048577 bytes was announced",
        ),
        (header(0, 0), "a message of the unknown kind 0x00"),
        (
            header(0, 0x81),
            "a message of kind 0x81 that cannot be understood",
        ),
        (
            after_hello(&header(0, 0x01)),
            "a message of the unknown kind 0x01",
        ),
        (
            after_hello(&header(0, 0x84)),
            "a message of kind 0x84 that cannot be understood",
        ),
        (
            after_hello(&[&header(2, 0x89)[..], &[200, 0]].concat()),
            "a message of kind 0x89 that cannot be understood",
        ),
    ] {
        let told = told(result(words, Then::Waits));
        assert!(
            told.starts_with("the guest broke the protocol: ") && told.contains(said),
            "{told}"
        );
    }
}

#[test]
fn messages_out_of_order_end_the_session() {
    let mut wrong: Vec<(Vec<ToHost>, &str)> = Vec::new();
    for first in [
        ToHost::Time,
        ToHost::Started,
        ToHost::Stdout(b"x"),
        ToHost::Warning("x".into()),
        exit(0),
    ] {
        wrong.push((vec![first], "its first message is not a hello"));
    }
    for second in [
        hello(),
        ToHost::Stdout(b"x"),
        ToHost::Stderr(b""),
        ToHost::Room(1),
        ToHost::Files(b""),
        exit(0),
        ToHost::FilesOf(0, None),
    ] {
        wrong.push((vec![hello(), second], "a message out of order"));
    }
    for third in [
        hello(),
        ToHost::Time,
        ToHost::Started,
        ToHost::Files(b""),
        ToHost::Refused(Refusal::NotFound("x".into())),
    ] {
        wrong.push((
            vec![hello(), ToHost::Started, third],
            "a message out of order",
        ));
    }
    wrong.push((
        vec![hello(), ToHost::Started, hello()],
        "a message out of order: a hello after the command's start",
    ));
    for number in [0, 1, u32::MAX] {
        for why in [None, Some("x".to_owned())] {
            wrong.push((
                vec![hello(), ToHost::Started, ToHost::FilesOf(number, why)],
                "files that were not asked for",
            ));
        }
    }
    for (messages, said) in wrong {
        let told = told(result(encoded(&messages), Then::Waits));
        assert!(told.contains(said), "{messages:?}: {told}");
    }
}

#[test]
fn the_text_of_a_refusal_has_no_control_characters() {
    let text = || format!("sh\x1b]0;owned\x07\r\n{}", "x".repeat(BODY_MAX / 2));
    let end = |refusal| result(encoded(&[hello(), ToHost::Refused(refusal)]), Then::Waits);
    let shown = |text: &str| {
        assert!(text.contains("sh]0;owned"), "{text:?}");
        assert!(
            text.len() < 600 && !text.contains(char::is_control),
            "{text:?}"
        );
    };
    match end(Refusal::NotFound(text())).unwrap() {
        End::NotFound(what) => shown(&what),
        other => panic!("{other:?}"),
    }
    match end(Refusal::NotExecutable(text())).unwrap() {
        End::NotExecutable(what) => shown(&what),
        other => panic!("{other:?}"),
    }
    shown(&told(end(Refusal::Failed(text()))));
}

#[test]
fn messages_after_the_exit_are_ignored() {
    let words = encoded(&[
        hello(),
        ToHost::Started,
        exit(0),
        exit(1),
        ToHost::Stdout(b"more"),
    ]);
    let scene = Scene::new([words, vec![0xff; 100]].concat(), Then::Waits);
    let stdout = scene.stdout.clone();
    assert_eq!(scene.play().unwrap().end, End::Exited(0));
    assert!(stdout.0.lock().unwrap().is_empty());
}

#[test]
fn a_log_comes_once_and_only_where_it_was_asked_for() {
    let log = || {
        ToHost::Log(KernelLog {
            records: vec![0xff; LOG_MAX],
            ..KernelLog::default()
        })
    };
    let report = |timeline, logs: usize| {
        let logs = std::iter::repeat_with(log).take(logs);
        let words = [hello(), ToHost::Started].into_iter().chain(logs);
        let words: Vec<_> = words.chain([exit(0)]).collect();
        let mut scene = Scene::new(encoded(&words), Then::Waits);
        scene.request.timeline = timeline;
        scene.play()
    };
    let sent = report(true, 1).unwrap().log.unwrap();
    assert_eq!(sent.records.len(), LOG_MAX);
    assert_eq!(report(true, 0).unwrap().log, None);
    for (timeline, logs) in [(false, 1), (true, 2)] {
        let told = told(report(timeline, logs));
        assert!(told.contains("out of order: a log"), "{told}");
    }
}

#[test]
fn a_machine_that_ends_before_the_exit_is_an_error() {
    let whole = encoded(&[hello(), ToHost::Started, exit(0)]);
    for len in 0..whole.len() {
        let told = told(result(whole[..len].to_vec(), Then::Ends));
        assert_eq!(
            told, "the machine ended before its command did: the script is over",
            "{len}"
        );
    }
}

#[test]
fn an_error_names_another_protocol_version() {
    let theirs = ToHost::Hello(Hello {
        version: 99,
        rings: None,
    });
    let told = told(result(encoded(&[theirs]), Then::Waits));
    assert!(told.contains("another version (99, not "), "{told}");
}

#[test]
fn a_guest_that_never_starts_a_command_has_a_limit() {
    for words in [
        vec![],
        encoded(&[hello()]),
        encoded(&[hello()])[..3].to_vec(),
    ] {
        let mut scene = Scene::new(words, Then::Waits);
        scene.boot_limit = SOON;
        assert!(matches!(scene.play(), Err(Error::NoInit(SOON))));
    }
    // These guests send messages all the time.
    let first = encoded(&[hello()]);
    for said in [ToHost::Warning("wait".into()), ToHost::Time] {
        let words = [first.clone(), encoded(&[said])].concat();
        let mut scene = Scene::new(words, Then::Repeats(first.len()));
        scene.boot_limit = SOON;
        let result = scene.play();
        assert!(matches!(result, Err(Error::NoInit(SOON))), "{result:?}");
    }
}

#[test]
fn a_guest_gets_the_time_when_it_asks() {
    let now = || u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos()).unwrap();
    let question = encoded(&[hello(), ToHost::Time]);
    let end = encoded(&[ToHost::Started, exit(0)]);
    let began = now();
    let mut scene = Scene::new([question.clone(), end].concat(), Then::Waits);
    // One message with the request, and one for the question.
    scene.waits = Some((question.len(), Until::Sent(2, "")));
    let sent = scene.sent.clone();
    assert_eq!(scene.play().unwrap().end, End::Exited(0));
    let mut decoder = frame::Decoder::default();
    decoder.extend(&sent.0.lock().unwrap());
    let mut times = vec![began];
    while let Some((tag, body)) = decoder.next().unwrap() {
        times.push(match ToGuest::decode(tag, body).unwrap() {
            ToGuest::Request(request) => request.now,
            ToGuest::Time(now) => now,
            other => panic!("{other:?}"),
        });
    }
    times.push(now());
    assert!(times.len() == 4 && times.is_sorted(), "{times:?}");
}

#[test]
fn floods_end_at_the_time_limit_with_little_memory() {
    let _alone = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    let before = peak();
    for (message, len) in [
        (ToHost::Stdout(&[b'x'; 65536]), 10),
        (ToHost::Stderr(b""), 1000),
        (ToHost::Room(u32::MAX), 1000),
        (ToHost::Warning("x".repeat(BODY_MAX - 10)), 1),
    ] {
        let start = encoded(&[hello(), ToHost::Started]);
        let words = [start.clone(), encoded(&vec![message; len])].concat();
        let (reader, _writer) = io::pipe().unwrap();
        let mut scene = Scene::new(words, Then::Repeats(start.len()));
        scene.timeout = Some(SOON);
        scene.max_output = Some(100);
        scene.stdin = Some(reader.into());
        let report = scene.play().unwrap();
        assert_eq!(report.end, End::TimedOut);
        let lines: Vec<_> = report.warnings.iter().map(ToString::to_string).collect();
        assert!(lines.len() <= 20 && lines.iter().all(|line| line.len() <= 500));
        if let Some(last) = lines.last() {
            assert!(last.starts_with("there were ") && last.ends_with(" more warnings"));
        }
    }
    let grown = peak() - before;
    assert!(grown < 32 << 10, "{grown} KiB more");
}

/// Returns the most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

#[test]
fn each_request_for_input_gets_at_most_one_window() {
    with_limits_from(SOON, |limit| {
        let (reader, mut writer) = io::pipe().unwrap();
        let feeder = std::thread::spawn(move || {
            // Until the session has dropped the reading end.
            while writer.write_all(&[7; 65536]).is_ok() {}
        });
        let asked = [u32::MAX; 3].map(ToHost::Room);
        let words = encoded(&[&[hello(), ToHost::Started], &asked[..]].concat());
        let mut scene = Scene::new(words, Then::Waits);
        scene.stdin = Some(reader.into());
        scene.timeout = Some(limit);
        let sent = scene.sent.clone();
        assert_eq!(scene.play().unwrap().end, End::TimedOut);
        feeder.join().unwrap();
        let sent = sent.0.lock().unwrap().len();
        // A window each time at the most, and frames around it.
        assert!(sent <= 3 * STDIN_WINDOW as usize + 4096, "{sent}");
        (sent > STDIN_WINDOW as usize).then_some(())
    });
}

#[test]
fn signals_wait_for_the_command_and_a_stop_does_not() {
    let messages = |sent: &Shared| -> Vec<String> {
        let told = told_guest(&sent.0);
        let kind = |message: &String| message.split('(').next().unwrap().to_owned();
        told.iter().map(kind).collect()
    };
    let mut scene = Scene::new(encoded(&[hello()]), Then::Waits);
    scene.events = vec![Event::Signal(15), Event::Stop(15)];
    let sent = scene.sent.clone();
    assert_eq!(scene.play().unwrap().end, End::Stopped(15));
    assert!(messages(&sent).iter().all(|message| message == "Request"));
    let mut scene = started_until(Until::Sent(2, ""));
    scene.events = vec![Event::Signal(15)];
    let sent = scene.sent.clone();
    assert_eq!(scene.play().unwrap().end, End::Exited(0));
    // This guest doesn't wait for its request, so that either may come first.
    let mut told = messages(&sent);
    told.sort();
    assert_eq!(told, ["Request", "Signal"]);
}

/// Makes a scene whose command starts, and exits at this event.
fn started_until(event: Until) -> Scene {
    let started = encoded(&[hello(), ToHost::Started]);
    let mut scene = Scene::new([started.clone(), encoded(&[exit(0)])].concat(), Then::Waits);
    scene.waits = Some((started.len(), event));
    scene
}

/// Makes an entry of a cpio archive, whose name may be one that no archive should have.
fn entry(name: &str, mode: u32, size: u32, data: &[u8]) -> Vec<u8> {
    let name_size = u32::try_from(name.len() + 1).unwrap();
    let fields = [1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    let mut entry = b"070701".to_vec();
    fields
        .iter()
        .for_each(|field| write!(entry, "{field:08x}").unwrap());
    entry.extend(name.as_bytes());
    entry.resize((entry.len() + 1).next_multiple_of(4), 0);
    entry.extend(data);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry
}

/// Makes a valid archive of one file.
fn archive(name: &str) -> Vec<u8> {
    let mut archive = Archive::new(Vec::new());
    archive
        .file(name, Attributes::new(0o644), 2, &b"hi"[..])
        .unwrap();
    archive.finish().unwrap()
}

/// Runs a session with a guest that sends an archive in these pieces for the one folder to copy out; returns the folder around the copy.
fn copied(pieces: &[&[u8]]) -> (tempfile::TempDir, Result<Report, Error>) {
    let mut messages = vec![hello(), ToHost::Started, ToHost::FilesOf(0, None)];
    messages.extend(pieces.iter().map(|piece| ToHost::Files(piece)));
    messages.extend([ToHost::Files(b""), exit(0)]);
    let folder = tempfile::tempdir().unwrap();
    let result = copying(folder.path(), encoded(&messages), Then::Waits).play();
    (folder, result)
}

fn copying(folder: &Path, words: Vec<u8>, then: Then) -> Scene {
    fs::write(folder.join("victim"), "safe").unwrap();
    Scene {
        copy_out: vec![Files {
            from: "/work".into(),
            to: folder.join("below/out"),
        }],
        ..Scene::new(words, then)
    }
}

/// Checks that nothing was written outside `below/out`.
fn assert_untouched(folder: &Path) {
    assert_eq!(fs::read(folder.join("victim")).unwrap(), b"safe");
    let below = |path: &Path| {
        fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    assert!(
        below(folder)
            .iter()
            .all(|name| name == "victim" || name == "below"),
        "{:?}",
        below(folder)
    );
    if folder.join("below").exists() {
        assert!(
            below(&folder.join("below"))
                .iter()
                .all(|name| name == "out")
        );
    }
}

#[test]
fn archives_that_lead_elsewhere_write_nothing_there() {
    let (folder, report) = copied(&[&archive("copied")]);
    assert!(!report.unwrap().copy_failed);
    assert_eq!(fs::read(folder.path().join("below/out")).unwrap(), b"hi");
    let file = |name: &str| entry(name, 0o100_644, 4, b"evil");
    let link = |name: &str, to: &str| {
        let len = u32::try_from(to.len()).unwrap();
        entry(name, 0o120_777, len, to.as_bytes())
    };
    let end = entry("TRAILER!!!", 0, 0, b"");
    let root = entry("copied", 0o040_755, 0, b"");
    for entries in [
        vec![file("../victim")],
        vec![file("copied/../../victim")],
        vec![root.clone(), file("copied/../../victim")],
        vec![file("/etc/victim")],
        vec![file("victim")],
        vec![file("")],
        vec![file("copiedvictim")],
        vec![link("copied", ".."), file("copied/victim")],
        vec![
            root.clone(),
            link("copied/l", "../.."),
            file("copied/l/victim"),
        ],
        vec![
            root.clone(),
            link("copied/l", "/"),
            file("copied/l/tmp/minivm-victim"),
        ],
        vec![
            root.clone(),
            link("copied/a", "b"),
            link("copied/b", "../.."),
            file("copied/a/victim"),
        ],
        vec![entry("copied", 0o100_644, 100, b"short")],
        vec![entry("copied", 0o100_644, u32::MAX, b"short")],
        vec![entry("copied", 0o120_777, u32::MAX, b"short")],
    ] {
        let bytes = [entries.concat(), end.clone()].concat();
        let (folder, report) = copied(&[&bytes]);
        let report = report.unwrap();
        assert!(
            report.copy_failed || !report.warnings.is_empty(),
            "{:?}",
            String::from_utf8_lossy(&bytes)
        );
        assert_untouched(folder.path());
        assert!(!Path::new("/tmp/minivm-victim").exists());
    }
}

#[test]
fn bytes_that_are_no_archive_fail_the_copy_alone() {
    for bytes in [
        &b"x"[..],
        &[0; 200],
        &archive("copied")[..30],
        b"070701zzzzzzzz",
    ] {
        let (folder, report) = copied(&[bytes]);
        let report = report.unwrap();
        assert!(report.copy_failed, "{bytes:?}");
        assert!(
            report.warnings[0]
                .to_string()
                .starts_with("cannot copy /work out: to "),
            "{:?}",
            report.warnings
        );
        assert!(matches!(report.end, End::Exited(_)));
        assert_untouched(folder.path());
    }
}

#[test]
fn more_files_than_agreed_end_the_session() {
    let piece = [0_u8; 65536];
    let (folder, result) = copied(&[&piece[..]; 17]);
    assert_eq!(
        told(result),
        "cannot take files out: the guest sends more than 1048576 bytes"
    );
    assert_untouched(folder.path());
}

#[test]
fn files_that_never_come_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let words = encoded(&[hello(), ToHost::Started, exit(0)]);
    let report = copying(folder.path(), words, Then::Waits).play().unwrap();
    assert!(report.copy_failed, "{report:?}");
    assert_eq!(report.warnings.len(), 1, "{report:?}");
}

/// Returns the bytes of a guest that sends a folder with two files, the second only in part, and then `rest`; and how many bytes come before
/// `rest`.
fn half_a_folder(rest: &[ToHost]) -> (Vec<u8>, usize) {
    let mut begun = entry("copied", 0o040_755, 0, b"");
    begun.extend(entry("copied/whole", 0o100_644, 2, b"hi"));
    begun.extend(entry("copied/part", 0o100_644, 200_000, b""));
    begun.extend([b'x'; 100_000]);
    let mut words = encoded(&[
        hello(),
        ToHost::Started,
        ToHost::FilesOf(0, None),
        ToHost::Files(&begun),
    ]);
    let until = words.len();
    words.extend(encoded(rest));
    (words, until)
}

/// Checks that of `half_a_folder` the one whole file was copied.
fn assert_one_is_whole(folder: &Path) {
    let names: Vec<_> = fs::read_dir(folder.join("below/out")).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(fs::read(folder.join("below/out/whole")).unwrap(), b"hi");
}

#[test]
fn a_limit_or_a_signal_ends_a_copy_and_whole_files_stay() {
    let ends = |limit: Option<Duration>, end: End, why: &str| {
        let folder = tempfile::tempdir().unwrap();
        let (words, _) = half_a_folder(&[]);
        let mut scene = copying(folder.path(), words, Then::Waits);
        let seen = folder.path().join("below/out/whole");
        scene.timeout = limit;
        if limit.is_none() {
            scene.later = Some((seen.clone(), Event::Signal(15)));
            // The image's own stop signal, which is for the command.
            scene.stop_signal = 10;
        }
        let report = scene.play().unwrap();
        assert_eq!((report.end, report.copy_failed), (end, true));
        // On a busy host the copy may not have begun by then.
        seen.exists().then(|| {
            let said = format!(
                "/work was not copied out as a whole, but 1 of its files and folders: {why}"
            );
            assert_eq!(report.warnings, [Warning::Other(said)]);
            assert_one_is_whole(folder.path());
        })
    };
    let late = "the time limit was reached first; with --copy-out-on-timeout, what is there then is copied";
    with_limits_from(SOON, |limit| ends(Some(limit), End::TimedOut, late));
    ends(None, End::Stopped(15), "the machine was stopped").unwrap();
}

/// A file that a scene waits for.
fn release(folder: &Path) -> &'static Path {
    Box::leak(folder.join("release").into_boxed_path())
}

/// A scene whose guest sends half a folder, and the rest once it is released.
fn halting(folder: &Path) -> Scene {
    let rest = [&[b'x'; 100_000][..], &entry("TRAILER!!!", 0, 0, b"")].concat();
    let (words, until) = half_a_folder(&[ToHost::Files(&rest), ToHost::Files(b""), exit(0)]);
    let mut scene = copying(folder, words, Then::Waits);
    scene.waits = Some((until, Until::Exists(release(folder))));
    scene
}

/// Plays a scene that copies half a folder, in a process of its own. When the first file is whole, `act` gets that process and its
/// unpacker; then the scene is released. Returns how the process ended: with its warnings, or by a signal.
fn with_an_unpacker(folder: &Path, scene: Scene, act: impl FnOnce(Pid, Process)) -> Exited {
    let (whole, named) = (folder.join("below/out/whole"), folder.join("process"));
    std::thread::scope(|scope| {
        let session = scope.spawn(|| {
            forked(|_| {
                fs::write(&named, std::process::id().to_string()).unwrap();
                let warnings = scene.play().unwrap().warnings;
                let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
                warnings.join("\n")
            })
        });
        wait_until("no file is copied", || whole.exists());
        let process = fs::read_to_string(&named).unwrap().parse().unwrap();
        let [unpacker] = processes::below(process)[..] else {
            panic!("{:?}", processes::below(process));
        };
        act(pid(process), unpacker);
        fs::write(release(folder), "").unwrap();
        session.join().unwrap()
    })
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.try_into().unwrap()).unwrap()
}

#[test]
fn a_session_that_is_killed_leaves_no_unpacker() {
    let folder = tempfile::tempdir().unwrap();
    let ended = with_an_unpacker(
        folder.path(),
        halting(folder.path()),
        |session, unpacker| {
            // It doesn't see the session's end itself.
            kill_process(pid(unpacker.id), Signal::STOP).unwrap();
            kill_process(session, Signal::KILL).unwrap();
            wait_until("the unpacker stays", || !unpacker.still_runs());
        },
    );
    assert_eq!(ended, Exited::Killed(9));
    assert_eq!(
        fs::read(folder.path().join("below/out/whole")).unwrap(),
        b"hi"
    );
}

#[test]
fn an_unpacker_that_is_killed_fails_the_copy_alone() {
    let folder = tempfile::tempdir().unwrap();
    let ended = with_an_unpacker(folder.path(), halting(folder.path()), |_, unpacker| {
        kill_process(pid(unpacker.id), Signal::KILL).unwrap();
    });
    let to = folder.path().join("below/out");
    let warning = format!(
        "cannot copy /work out: to {}: the process that unpacks it ended: it was killed, perhaps because this host has no memory left",
        to.display()
    );
    assert_eq!(ended, Exited::Returned(warning));
    assert_eq!(fs::read(to.join("whole")).unwrap(), b"hi");
}

#[test]
fn an_unpacker_that_hangs_keeps_no_session() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = copying(folder.path(), half_a_folder(&[]).0, Then::Waits);
    scene.later = Some((release(folder.path()).into(), Event::Stop(2)));
    let ended = with_an_unpacker(folder.path(), scene, |_, unpacker| {
        kill_process(pid(unpacker.id), Signal::STOP).unwrap();
    });
    let warning = "/work was not copied out as a whole, but 0 of its files and folders: the machine was stopped";
    assert_eq!(ended, Exited::Returned(warning.into()));
}

#[test]
fn an_exit_that_comes_after_the_time_limit_is_a_timeout() {
    with_limits_from(SOON, |limit| {
        let folder = tempfile::tempdir().unwrap();
        let rest = vec![b'x'; 100_000];
        let end = entry("TRAILER!!!", 0, 0, b"");
        let rest = [rest, end].concat();
        let (words, until) = half_a_folder(&[ToHost::Files(&rest), ToHost::Files(b""), exit(0)]);
        let mut scene = copying(folder.path(), words, Then::Waits);
        scene.waits = Some((until, Until::Stopped));
        scene.timeout = Some(limit);
        let report = scene.play().unwrap();
        assert_eq!((report.end, report.copy_failed), (End::TimedOut, true));
        let whole = folder.path().join("below/out/whole");
        whole.exists().then(|| assert_one_is_whole(folder.path()))
    });
}

#[test]
fn at_the_time_limit_the_command_is_killed_and_its_files_are_copied() {
    let folder = tempfile::tempdir().unwrap();
    let begun = encoded(&[hello(), ToHost::Started]);
    let rest = [
        ToHost::FilesOf(0, None),
        ToHost::Files(&archive("copied")),
        ToHost::Files(b""),
        exit(137),
    ];
    let words = [begun.clone(), encoded(&rest)].concat();
    let mut scene = copying(folder.path(), words, Then::Waits);
    scene.waits = Some((begun.len(), Until::Sent(1, "Signal(9)")));
    scene.timeout = Some(Duration::from_millis(1));
    scene.copy_out_grace = Some(PATIENCE);
    let report = scene.play().unwrap();
    assert_eq!(
        (report.end, report.copy_failed, report.warnings),
        (End::TimedOut, false, Vec::new())
    );
    assert_eq!(fs::read(folder.path().join("below/out")).unwrap(), b"hi");
}

#[test]
fn copies_that_were_not_made_are_one_warning_however_the_command_ended() {
    let ended = |change: &dyn Fn(&mut Scene)| {
        let folder = tempfile::tempdir().unwrap();
        let words = encoded(&[hello(), ToHost::Started]);
        let mut scene = copying(folder.path(), words, Then::Waits);
        change(&mut scene);
        let report = scene.play().unwrap();
        assert!(
            report.copy_failed && report.warnings.len() == 1,
            "{report:?}"
        );
        (report.end, report.warnings[0].to_string())
    };
    let limit = |scene: &mut Scene| scene.timeout = Some(Duration::from_millis(1));
    let told = |end, why: &str| (end, format!("nothing was copied out: {why}"));
    assert_eq!(
        ended(&limit),
        told(
            End::TimedOut,
            "the time limit was reached first; with --copy-out-on-timeout, what is there then is copied"
        )
    );
    assert_eq!(
        ended(&|scene| {
            limit(scene);
            scene.copy_out_grace = Some(Duration::from_millis(1));
        }),
        told(
            End::TimedOut,
            "the time limit was reached, and --copy-out-grace is over"
        )
    );
    assert_eq!(
        ended(&|scene| scene.events = vec![Event::Stop(2)]),
        told(End::Stopped(2), "the machine was stopped")
    );
}

#[test]
fn a_command_gets_its_own_stop_signal() {
    let mut scene = started_until(Until::Sent(2, "Signal"));
    scene.events = vec![Event::Signal(15), Event::Signal(1)];
    scene.stop_signal = 37;
    let sent = scene.sent.clone();
    scene.play().unwrap();
    let mut signals = told_guest(&sent.0);
    signals.retain(|message| message.starts_with("Signal"));
    assert_eq!(signals, ["Signal(37)", "Signal(1)"]);
}

#[test]
fn files_that_come_twice_end_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = archive("copied");
    let once = [
        ToHost::FilesOf(0, None),
        ToHost::Files(&bytes),
        ToHost::Files(b""),
    ];
    let words = encoded(&[&[hello(), ToHost::Started][..], &once, &once].concat());
    let told = told(copying(folder.path(), words, Then::Waits).play());
    assert!(told.contains("files that were not asked for"), "{told}");
}

/// How a session begins, step by step, and how a copy of files does.
fn beginning() -> Vec<Vec<u8>> {
    let steps = [hello(), ToHost::Started, ToHost::FilesOf(0, None)];
    steps.map(|step| encoded(&[step])).into()
}

/// Something that happens on the host meanwhile.
fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<u8>().prop_map(Event::Signal),
        (any::<u16>(), any::<u16>())
            .prop_map(|(rows, columns)| Event::Window(Window { rows, columns })),
        (1..65_u8).prop_map(Event::Stop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: stress::count(300, 20_000),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_a_guest_says_the_session_ends(
        words in attack::stream(beginning()),
        flags: [bool; 3],
        max_output in proptest::option::of(0..100_u64),
        events in prop::collection::vec(event(), 0..3),
    ) {
        let [again, greeted, timeline] = flags;
        let folder = tempfile::tempdir().unwrap();
        let then = match again {
            true if words.is_empty() => Then::Waits,
            true => Then::Repeats(0),
            false => Then::Ends,
        };
        let mut scene = copying(folder.path(), words, then);
        scene.boot_limit = Duration::from_millis(20);
        scene.timeout = Some(Duration::from_millis(20));
        scene.stdin = Some(File::open("/dev/zero").unwrap().into());
        (scene.greeted, scene.max_output, scene.events) = (greeted, max_output, events);
        scene.request.timeline = timeline;
        let stdout = scene.stdout.clone();
        let played = scene.play_and_look();
        prop_assert_eq!((played.held, played.stopped), (0, true), "its machine is still there");
        assert_untouched(folder.path());
        if let Some(most) = max_output {
            prop_assert!(stdout.bytes().len() as u64 <= most);
        }
        let lines = match &played.result {
            Ok(report) => report.warnings.iter().map(ToString::to_string).collect(),
            Err(_) => vec![told(played.result)],
        };
        for line in lines {
            prop_assert!(line.len() < 2000 && !line.contains(char::is_control), "{:?}", line);
        }
    }
}
