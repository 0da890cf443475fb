//! The sandboxes with Pyodide: what code in them can do, and what it can't.

// Tests run: with the tools

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod ran;

use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use minivm_machine::{CopyIn, Files};
use minivm_sandbox::tools::npm;
use minivm_sandbox::{Backend, CODE_MAX, Capability, End, Error, Sandbox, Task};
use minivm_tests::output::Shared;
use minivm_tests::patience::{PATIENCE, with_limits_from};
use ran::Ran;

fn open(backend: Backend) -> Box<dyn Sandbox> {
    let cache = minivm_machine::cache::folder().unwrap();
    npm::install(&cache, &mut |what| eprintln!("{what}")).unwrap();
    let sandbox = ran::host(cache, None).open(backend).unwrap();
    sandbox.check().unwrap();
    sandbox
}

impl Ran {
    /// The exception's type, message and line.
    fn exception(&self) -> (&str, &str, Option<u32>) {
        let exception = self.finished.exception.as_ref();
        let exception = exception.unwrap_or_else(|| panic!("none in {:?}", self.stderr));
        (&exception.kind, &exception.message, exception.line)
    }
}

fn run(backend: Backend, task: Task) -> Ran {
    ran::run(&*open(backend), task)
}

fn run_code(backend: Backend, code: &str) -> Ran {
    run(backend, Task::code(code))
}

/// The stdout of code that exits with 0 and writes nothing to stderr.
fn printed(backend: Backend, code: &str) -> String {
    printed_by(backend, Task::code(code))
}

fn printed_by(backend: Backend, task: Task) -> String {
    let ran = run(backend, task);
    assert_eq!(ran.stderr, "");
    assert_eq!(ran.finished.end, End::Exited(0));
    assert!(!ran.finished.truncated);
    ran.stdout
}

fn outputs_stay_apart_and_are_bytes(backend: Backend) {
    let code = "import sys\nprint('héllo wörld ✓ 🐍')\nprint('err', file=sys.stderr)\nprint('no line end', end='')\n\
                sys.stdout.buffer.write(b'\\r\\n\\t\\x00')";
    let ran = run_code(backend, code);
    assert_eq!(ran.stdout, "héllo wörld ✓ 🐍\nno line end\r\n\t\0");
    assert_eq!(ran.stderr, "err\n");
    assert_eq!(ran.finished.end, End::Exited(0));
}

fn output_comes_at_once(backend: Backend) {
    with_limits_from(Duration::from_secs(5), |limit| {
        let mut task = Task::code("print('begun', end='')\nwhile True: pass");
        task.limits.time = Some(limit);
        let ran = run(backend, task);
        assert_eq!(ran.finished.end, End::TimedOut);
        (ran.stdout == "begun").then_some(())
    });
}

fn exceptions_have_type_message_and_line(backend: Backend) {
    let ran = run_code(
        backend,
        "def f():\n    raise ValueError('no: not this')\n\nf()\n",
    );
    assert_eq!(ran.finished.end, End::Exited(1));
    assert_eq!(ran.exception(), ("ValueError", "no: not this", Some(2)));
    assert_eq!(
        ran.stderr,
        "Traceback (most recent call last):\n  File \"<string>\", line 4, in <module>\n    f()\n    ~^^\n  \
         File \"<string>\", line 2, in f\n    raise ValueError('no: not this')\nValueError: no: not this\n"
    );
    let ran = run_code(backend, "x = 1\na b\n");
    let (kind, message, line) = ran.exception();
    assert_eq!((kind, line), ("SyntaxError", Some(2)));
    assert!(message.starts_with("invalid syntax"), "{message}");
    assert_eq!(ran.stdout, "");
    let chain = "import json\ntry:\n    json.loads('{')\nexcept ValueError as error:\n    raise KeyError('k') from error";
    let ran = run_code(backend, chain);
    assert_eq!(ran.exception(), ("KeyError", "'k'", Some(5)));
}

fn exit_codes_pass_through(backend: Backend) {
    for (code, end, stderr) in [
        ("import sys; sys.exit(42)", 42, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit('sorry')", 1, "sorry\n"),
        ("import os; os._exit(7)", 7, ""),
        (
            "import atexit, sys; atexit.register(lambda: print('bye', file=sys.stderr))",
            0,
            "bye\n",
        ),
    ] {
        let ran = run_code(backend, code);
        assert_eq!(ran.finished.end, End::Exited(end), "{code}: {}", ran.stderr);
        assert_eq!(ran.stderr, stderr, "{code}");
        assert_eq!(ran.finished.exception, None, "{code}");
    }
}

fn a_fatal_error_of_the_interpreter_is_reported(backend: Backend) {
    let ran = run_code(backend, "import os; print('a', flush=True); os.abort()");
    assert_eq!(ran.finished.end, End::Signal(6));
    // Pyodide also writes the traceback there.
    assert!(ran.stdout.starts_with("a\n"), "{}", ran.stdout);
    assert!(ran.stderr.contains("came to its end"), "{}", ran.stderr);
}

fn asyncio_and_sleep_work(backend: Backend) {
    let code = "import asyncio, time\nasync def main():\n    await asyncio.sleep(0.01)\n    return 3\n\
                time.sleep(0.01)\nprint(asyncio.run(main()))";
    assert_eq!(printed(backend, code), "3\n");
}

fn code_runs_as_the_main_module(backend: Backend) {
    let code = "import sys, __main__\nx = 1\nprint(__name__, __main__.x, sys.argv)";
    assert_eq!(printed(backend, code), "__main__ 1 ['-c']\n");
}

fn memory_has_a_limit(backend: Backend) {
    let mut task = Task::code("a = []\nwhile True: a.append(bytearray(b'x') * (8 << 20))");
    let limit = if backend == Backend::Deno { 600 } else { 1024 };
    task.limits.memory = Some(limit << 20);
    let ran = run(backend, task);
    assert_eq!(ran.finished.end, End::OutOfMemory, "{}", ran.stderr);
    let mut task = Task::code("print(2+2)");
    task.limits.memory = Some(limit << 20);
    let ran = run(backend, task);
    assert_eq!(
        (&*ran.stdout, &ran.finished.end),
        ("4\n", &End::Exited(0)),
        "{}",
        ran.stderr
    );
    let peak = ran.finished.usage.peak_memory.unwrap();
    assert!((10 << 20..limit << 20).contains(&peak), "{peak}");
    let hog = "a = []\nwhile True: a.append(bytearray(b'x') * (8 << 20))";
    let ran = run_code(backend, hog);
    assert_eq!(ran.finished.end, End::OutOfMemory, "there is a default");
}

fn too_much_for_webassembly_is_a_memory_error(backend: Backend) {
    let mut task =
        Task::code("a = bytearray(3 << 29)\nb = bytearray(3 << 29)\nc = bytearray(3 << 29)");
    // More than the address space of WebAssembly.
    task.limits.memory = Some(6 << 30);
    let ran = run(backend, task);
    assert_eq!(ran.finished.end, End::Exited(1));
    assert_eq!(ran.exception().0, "MemoryError");
}

fn a_flood_is_cut(backend: Backend) {
    let mut task = Task::code("for _ in range(200): print('x' * 9999)");
    task.limits.output = Some(1000);
    let ran = run(backend, task);
    assert_eq!(ran.stdout.len(), 1000);
    assert!(ran.finished.truncated);
    assert_eq!(ran.finished.end, End::Exited(0));
    let whole = printed(backend, "for _ in range(200): print('x' * 9999)");
    assert_eq!(whole.len(), 2_000_000);
}

fn input_is_read(backend: Backend) {
    let code = "import sys\nprint(input('name? '))\nprint(repr(sys.stdin.read()))\nprint(sys.stdin.read() == '')";
    let task = Task::code(code).with_input("Jörg\nand\nthe rest".as_bytes());
    let stdout = printed_by(backend, task.unwrap());
    assert_eq!(stdout, "name? Jörg\n'and\\nthe rest'\nTrue\n");
    let ran = run_code(backend, "input()");
    assert_eq!(
        ran.exception(),
        ("EOFError", "EOF when reading a line", Some(1))
    );
    let large = vec![b'x'; 8 << 20];
    let task = Task::code("import sys; print(len(sys.stdin.buffer.read()))").with_input(&large);
    assert_eq!(printed_by(backend, task.unwrap()), format!("{}\n", 8 << 20));
}

fn variables_are_set(backend: Backend) {
    let mut task = Task::code("import os\nprint(os.environ['A'], os.environ['B'])");
    task.env = vec![
        ("A".into(), "x".into()),
        ("A".into(), "ü = 1\n".into()),
        ("B".into(), "".into()),
    ];
    assert_eq!(printed_by(backend, task), "ü = 1\n \n");
    let mut task = Task::code("pass");
    task.env = vec![("A=B".into(), "x".into())];
    let error = open(backend).run(task).unwrap_err().to_string();
    assert!(error.contains("\"A=B\""), "{error}");
}

fn files_are_copied_in(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir_all(data.join("sub")).unwrap();
    fs::write(data.join("a.bin"), [0, 255, 10]).unwrap();
    fs::write(data.join("sub/b.txt"), "ü").unwrap();
    symlink("a.bin", data.join("link")).unwrap();
    symlink("/etc/passwd", data.join("outside")).unwrap();
    let old = |path: &str, seconds| {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let file = fs::File::open(data.join(path)).unwrap();
        file.set_modified(time).unwrap();
    };
    old("sub/b.txt", 1_000_000_002);
    old("sub", 1_000_000_001);
    old("", 1_000_000_000);
    let code = "import os\nprint(open('/in/d/a.bin', 'rb').read(), open('/in/d/sub/b.txt').read(), open('/in/d/link', 'rb').read())\n\
                print(*(int(os.stat(path).st_mtime) for path in ('/in/d', '/in/d/sub', '/in/d/sub/b.txt')))\n\
                print(os.path.exists('/in/d/outside'), sorted(os.listdir('/in/d')), os.listdir('/in/into'))\n\
                open('/in/d/a.bin', 'w').write('changed'); print(open('/in/d/a.bin').read())";
    let mut task = Task::code(code);
    let files = |from: PathBuf, to: &str| Files {
        from,
        to: to.into(),
    };
    let both = vec![
        files(data.clone(), "/in/d"),
        files(data.join("a.bin"), "/in/into/"),
    ];
    task.files = CopyIn::of(both).unwrap();
    let stdout = printed_by(backend, task);
    let names = "['a.bin', 'link', 'outside', 'sub']";
    let bytes = "b'\\x00\\xff\\n'";
    assert_eq!(
        stdout,
        format!(
            "{bytes} ü {bytes}\n1000000000 1000000001 1000000002\nFalse {names} ['a.bin']\nchanged\n"
        )
    );
    assert_eq!(fs::read(data.join("a.bin")).unwrap(), [0, 255, 10]);
    let mut task = Task::code("pass");
    let odd = Files {
        from: data,
        to: OsStr::from_bytes(b"/in/\xff").into(),
    };
    task.files = CopyIn::of(vec![odd]).unwrap();
    let error = open(backend).run(task).unwrap_err();
    assert!(error.to_string().starts_with("cannot copy to /in/"));
}

fn undeclared_capabilities_are_refused(backend: Backend) {
    let sandbox = open(backend);
    let mut task = Task::code("pass");
    task.functions
        .insert("f".into(), Box::new(|_| Err("no".into())));
    let error = sandbox.run(task).unwrap_err();
    let what = Capability::HostFunctions;
    assert!(matches!(error, Error::NotSupported { what: refused, .. } if refused == what));
    let long = Task::code("#".repeat(CODE_MAX + 1));
    assert!(matches!(sandbox.run(long).unwrap_err(), Error::Code));
    assert_eq!(
        printed(backend, &("#".repeat(CODE_MAX - 9) + "\nprint(1)")),
        "1\n"
    );
}

fn the_network_cannot_be_reached(backend: Backend) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let code = format!(
        "import asyncio, js, urllib.request
from pyodide.http import pyfetch, open_url
async def fetch(): await js.fetch('http://{address}/')
async def python_fetch(): await pyfetch('http://{address}/')
async def no_cors(): await js.fetch('http://{address}/', mode='no-cors')
async def url(): open_url('http://{address}/')
async def standard(): urllib.request.urlopen('http://{address}/', timeout=3)
async def web_socket():
    ended = asyncio.get_event_loop().create_future()
    socket = js.WebSocket.new('ws://{address}/')
    socket.onopen = lambda _: ended.set_result(None)
    socket.onerror = lambda _: ended.set_exception(OSError('it was not opened'))
    await ended
async def main():
    for attempt in (fetch, python_fetch, no_cors, url, standard, web_socket):
        try:
            await attempt()
            print(attempt.__name__, 'got through')
        except Exception:
            pass
asyncio.run(main())
print('done')"
    );
    let ran = run_code(backend, &code);
    assert_eq!(ran.stdout, "done\n", "{}", ran.stderr);
    let error = listener.accept().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

fn nothing_of_the_host_is_seen(backend: Backend) {
    let code = "import os\nprint(os.path.exists('/etc/passwd'), os.path.exists('/usr/bin'), os.environ.get('CARGO_BIN_EXE_minivm'), \
                os.environ.get('HOME'), 'CARGO_MANIFEST_DIR' in os.environ)";
    assert_eq!(
        printed(backend, code),
        "False False None /home/pyodide False\n"
    );
}

fn random_numbers_differ_from_run_to_run(backend: Backend) {
    let code = "import os, random, ssl, uuid, secrets\n\
                print(random.random(), os.urandom(4), ssl.RAND_bytes(4), uuid.uuid4(), secrets.token_hex(4))";
    let (first, second) = (printed(backend, code), printed(backend, code));
    for (one, other) in first.split_whitespace().zip(second.split_whitespace()) {
        assert_ne!(one, other);
    }
}

fn input_arrives_line_by_line(backend: Backend) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut task = Task::code("print(input())\nprint(input())");
    task.stdin = Some(OwnedFd::from(reader));
    let stdout = Shared::default();
    task.stdout = Box::new(stdout.clone());
    task.limits.time = Some(PATIENCE);
    let sandbox = open(backend);
    let running = thread::spawn(move || sandbox.run(task).unwrap());
    writer.write_all(b"one\n").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while *stdout.0.lock().unwrap() != b"one\n" {
        assert!(Instant::now() < deadline, "the first line was not answered");
        thread::sleep(Duration::from_millis(10));
    }
    writer.write_all(b"two\n").unwrap();
    assert_eq!(running.join().unwrap().end, End::Exited(0));
    assert_eq!(*stdout.0.lock().unwrap(), b"one\ntwo\n");
}

fn no_kind_of_browser_request_reaches_the_host(backend: Backend) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let code = format!(
        "import asyncio, js
js.eval(\"\"\"
const url = 'http://{address}/';
window.open(url);
const add = (name, fields) => document.documentElement.append(Object.assign(document.createElement(name), fields));
add('img', {{ src: url }});
add('iframe', {{ src: url }});
add('link', {{ rel: 'prefetch', href: url }});
add('link', {{ rel: 'preconnect', href: url }});
add('script', {{ src: url }});
navigator.sendBeacon(url, 'x');
const frame = document.createElement('iframe');
frame.name = 'frame';
const form = Object.assign(document.createElement('form'), {{ action: url, method: 'post', target: 'frame' }});
document.documentElement.append(frame, form);
form.submit();
new EventSource(url);
const peer = new RTCPeerConnection({{
  iceServers: [{{ urls: 'turn:{address}?transport=tcp', username: 'x', credential: 'x' }}],
}});
peer.createDataChannel('x');
peer.createOffer().then((offer) => peer.setLocalDescription(offer));
new Worker(URL.createObjectURL(new Blob([`fetch('${{url}}')`])));
\"\"\")
async def main(): await asyncio.sleep(3)
asyncio.run(main())
print('done')"
    );
    let ran = run_code(backend, &code);
    assert_eq!(ran.stdout, "done\n", "{}", ran.stderr);
    let error = listener.accept().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

fn leaving_the_page_ends_the_code_and_dialogs_return_at_once(backend: Backend) {
    let dialogs = "import js; print(js.alert('x'), js.confirm('y'))";
    assert_eq!(printed(backend, dialogs), "None False\n");
    for way in ["location.href = 'about:blank'", "location.reload()"] {
        let code = format!(
            "import asyncio, js\nprint('once')\njs.eval(\"{way}\")\n\
             async def main(): await asyncio.sleep(60)\nasyncio.run(main())"
        );
        let ran = run_code(backend, &code);
        assert_eq!(ran.finished.end, End::Signal(6), "{way}");
        assert_eq!(ran.stdout, "once\n", "{way}");
        assert!(ran.stderr.contains("left its page"), "{}", ran.stderr);
    }
}

fn a_crash_of_the_page_is_reported(backend: Backend) {
    let hog =
        "import js; js.eval('const all = []; while (true) all.push(new Array(1e6).fill(1.5))')";
    let mut task = Task::code(hog);
    // More than a page may allocate.
    task.limits.memory = Some(8 << 30);
    let ran = run(backend, task);
    assert_eq!(ran.finished.end, End::Signal(6));
    assert!(ran.stderr.contains("crashed"), "{}", ran.stderr);
}

fn forged_messages_of_the_page_do_no_harm(backend: Backend) {
    let code = "import js\nfor message in ['', 's', 'o', 'o!', 'ob2sK', 'é', 'zzz', 'e', '🐍']: js.minivmSend(message)\n\
                js.minivmSend('x3')";
    let ran = run_code(backend, code);
    assert_eq!(ran.finished.end, End::Exited(3));
    assert_eq!(ran.stdout, "ok\n");
    let code = "import js; js.minivmSend('fit is over')";
    let ran = run_code(backend, code);
    assert_eq!(ran.finished.end, End::Signal(6));
    assert_eq!(ran.stderr, "minivm: it is over\n");
}

/// Runs these claims for a backend.
macro_rules! claims {
    ($module:ident, $backend:expr, $($claim:ident),+ $(,)?) => {
        mod $module {
            $(#[test]
            fn $claim() {
                super::$claim($backend);
            })+
        }
    };
}

macro_rules! claims_of_both {
    ($module:ident, $backend:expr) => {
        claims!(
            $module,
            $backend,
            outputs_stay_apart_and_are_bytes,
            output_comes_at_once,
            exceptions_have_type_message_and_line,
            exit_codes_pass_through,
            a_fatal_error_of_the_interpreter_is_reported,
            asyncio_and_sleep_work,
            code_runs_as_the_main_module,
            memory_has_a_limit,
            too_much_for_webassembly_is_a_memory_error,
            a_flood_is_cut,
            input_is_read,
            variables_are_set,
            files_are_copied_in,
            undeclared_capabilities_are_refused,
            the_network_cannot_be_reached,
            nothing_of_the_host_is_seen,
            random_numbers_differ_from_run_to_run,
            input_arrives_line_by_line,
        );
    };
}

claims_of_both!(deno, minivm_sandbox::Backend::Deno);
claims_of_both!(chromium, minivm_sandbox::Backend::Chromium);
claims!(
    browser,
    minivm_sandbox::Backend::Chromium,
    no_kind_of_browser_request_reaches_the_host,
    leaving_the_page_ends_the_code_and_dialogs_return_at_once,
    a_crash_of_the_page_is_reported,
    forged_messages_of_the_page_do_no_harm,
);
