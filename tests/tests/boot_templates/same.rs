//! A run from a template is the same as one that boots: output, messages and exit code are, byte for byte.
//!
//! What can't be the same stands in [`what_cannot_be_the_same_is_known`].

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Instant;

use minivm_tests::busybox;
use minivm_tests::program::{Program, ends_until};
use minivm_tests::terminal::Terminal;

use crate::guest::{
    Made, PATIENCE, python, python_image, run, run_from, scratch, small, small_image, small_root,
};

/// What a run has to show.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// All that a command writes, and how it ends, with this input.
fn shown(mut command: Command, input: Option<&[u8]>) -> Shown {
    let mut program = Program::start(&mut command);
    let stdin = program.stdin.take().unwrap();
    let ended = thread::scope(|scope| {
        scope.spawn(move || {
            let mut stdin = stdin;
            // A command may end before it has read all of it.
            let _ = stdin.write_all(input.unwrap_or_default());
        });
        program.end(PATIENCE)
    });
    Shown {
        code: ended.code,
        stdout: String::from_utf8_lossy(&ended.stdout).into_owned(),
        stderr: ended.stderr,
    }
}

fn code(text: &str) -> [&str; 2] {
    ["--code", text]
}

/// Codes, each run as a process of its own.
const CODES: [&str; 63] = [
    "",
    "print(6*7)",
    "1/0",
    "{}['missing']",
    "raise KeyError('a', 'b')",
    "class Own(Exception): pass\nraise Own('why')",
    "class Own(BaseException): pass\nraise Own",
    "def f(n):\n    if n: f(n - 1)\n    raise ValueError(n)\nf(3)",
    "def f(): return f()\ntry: f()\nexcept RecursionError as error: print(type(error), error)",
    "try: 1/0\nexcept ZeroDivisionError as error: raise ValueError('b') from error",
    "try: 1/0\nexcept ZeroDivisionError: {}['c']",
    "try: 1/0\nexcept ZeroDivisionError: raise ValueError('d') from None",
    "raise ExceptionGroup('many', [ValueError(1), KeyError(2)])",
    "error = ValueError('x'); error.add_note('a note'); raise error",
    "assert 1 == 2, 'no'",
    "lambda: (",
    "  print(1)",
    "if True:\nprint(2)",
    "print('never'",
    "x = 'a\nb'",
    "exec('1/0')",
    "exec('def')",
    "eval('1 +')",
    "import nothing_at_all",
    "raise SystemExit",
    "import sys; sys.exit()",
    "import sys; sys.exit(7)",
    "import sys; sys.exit(300)",
    "import sys; sys.exit('a text')",
    "import sys; sys.exit((1, 2))",
    "exit(4)",
    "import os; print('lost', end=''); os._exit(9)",
    "raise KeyboardInterrupt",
    "def f(): raise KeyboardInterrupt('by hand')\nf()",
    "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('never')",
    "import os; os.kill(os.getpid(), 9)",
    "import os; os.kill(os.getpid(), 15)",
    "import os; os.kill(os.getpid(), 11)",
    "import os; os.abort()",
    "import atexit, sys\natexit.register(print, 'last')\natexit.register(print, 'first')\nprint('before')\nsys.exit(3)",
    "import atexit\ndef f(): 1/0\natexit.register(f)\nraise ValueError('and this')",
    "import atexit, sys, traceback\natexit.register(lambda: (print(sys.last_type, sys.last_value), traceback.print_tb(sys.last_traceback)))\n1/0",
    // Hooks.
    "import sys\nprint(sys.excepthook is sys.__excepthook__)\ndef hook(kind, error, trace):\n    import traceback\n    print(kind, error, traceback.format_tb(trace), traceback.format_tb(error.__traceback__))\nsys.excepthook = hook\ndef f(): 1/0\nf()",
    "import sys\ndef hook(kind, error, trace): print('own', kind)\nsys.excepthook = hook\nraise KeyboardInterrupt",
    "import threading\ndef f(): 1/0\nthread = threading.Thread(target=f)\nthread.start(); thread.join()\nprint('goes on')",
    "class A:\n    def __del__(self): 1/0\nA()\nprint('goes on')",
    "import warnings\nwarnings.warn('one')\nwarnings.warn('two', DeprecationWarning)\ndef f(): warnings.warn('three', stacklevel=2)\nf()",
    "import sys, signal\nprint([signal.getsignal(number) for number in (1, 2, 3, 13, 15)])",
    // What is there.
    "print(list(globals()), __name__, __doc__, __package__, __loader__, __spec__, __annotations__, __builtins__)\nprint(locals() is globals())",
    "import __main__, sys\nprint(dir(__main__), sys.modules['__main__'] is __main__)",
    "import sys\nprint(sys.argv, sys.flags, sys.path, sys.executable, sys.prefix, sys.meta_path, sys.dont_write_bytecode)",
    "import sys\nfor stream in sys.stdin, sys.stdout, sys.stderr: print(stream.name, stream.mode, stream.encoding, stream.errors, stream.line_buffering, stream.write_through, stream.isatty())",
    "import os, sys, locale\nprint(os.environ, sys.getfilesystemencoding(), locale.getpreferredencoding(), locale.setlocale(locale.LC_CTYPE))",
    "import os, stat\nprint(os.getcwd(), os.umask(0), os.getuid(), os.getgroups(), os.getpgrp() == os.getpid() == os.getsid(0), os.getpriority(0, 0))\nprint(sorted(os.listdir('/proc/self/fd')), [stat.S_IFMT(os.fstat(n).st_mode) for n in range(3)])\nprint([line for line in open('/proc/self/status') if line[:3] in ('Sig', 'Shd', 'Cap', 'NoN', 'Sec', 'Thr')])",
    "import sys, os\nprint(repr(sys.stdin.read()), os.read(0, 1))\ninput()",
    "import resource\nprint([resource.getrlimit(n) for n in range(16)])",
    // What is said.
    "# coding: latin-1\nprint('é ☃ 𝄞', '\\u00e9', len('𝄞'))",
    "print('\\udcff')",
    "import sys\nprint('out', flush=True); print('err', file=sys.stderr); sys.stdout.buffer.write(bytes(range(256)))",
    "print('x' * 300_000)",
    // Other processes and threads.
    "import pickle\nclass A:\n    x = 1\nprint(pickle.dumps(A()), pickle.loads(pickle.dumps(A)).x, A)",
    "import multiprocessing\ndef double(x): return 2 * x\nwith multiprocessing.Pool(2) as pool: print(pool.map(double, [1, 2, 3]), multiprocessing.get_start_method())",
    "import asyncio, subprocess, threading\nprint(subprocess.run(['sh', '-c', 'cat; echo $0 >&2; exit 3'], input=b'in', capture_output=True))\nasync def f(): return await asyncio.sleep(0, 'slept')\nprint(asyncio.run(f()), threading.current_thread(), threading.active_count())",
];

/// Runs codes in one machine that booted, each as a process that is like the command of a run.
const RUN_ALL: &str = r#"
import json, os, subprocess, sys
# Python's own, which each of them makes for itself.
os.environ.pop("LC_CTYPE", None)
shown = []
for code in json.load(sys.stdin):
    done = subprocess.run(
        ["python3", "-u", "-c", code], stdin=subprocess.DEVNULL, capture_output=True, start_new_session=True
    )
    texts = [text.decode("utf-8", "backslashreplace") for text in (done.stdout, done.stderr)]
    shown.append([done.returncode] + texts)
json.dump(shown, sys.stdout)
"#;

/// As Python's `backslashreplace` has it.
fn text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text += chunk.valid();
        chunk
            .invalid()
            .iter()
            .for_each(|byte| text += &format!("\\x{byte:02x}"));
    }
    text
}

/// Without addresses, which are never the same.
fn placeless(text: &str) -> String {
    let mut left = text;
    let mut plain = String::new();
    while let Some((before, after)) = left
        .split_once("0x")
        .or_else(|| left.split_once("started "))
    {
        plain += before;
        left = after.trim_start_matches(|c: char| c.is_ascii_hexdigit());
    }
    plain + left
}

#[test]
fn code_runs_as_in_a_python_that_has_just_started() {
    let template = python();
    // All in one machine would be a long wait, where the machine is slow.
    let cold = CODES.chunks(CODES.len().div_ceil(4)).flat_map(|codes| {
        let input = serde_json::to_vec(codes).unwrap();
        let cold = run(&python_image(), &["--cold", "-i"], &code(RUN_ALL));
        let cold = shown(cold, Some(&input));
        assert_eq!((cold.code, cold.stderr.as_str()), (Some(0), ""));
        let cold: Vec<(i32, String, String)> = serde_json::from_str(&cold.stdout).unwrap();
        assert_eq!(cold.len(), codes.len());
        cold
    });
    let mut differ = Vec::new();
    for (asked, (status, stdout, stderr)) in CODES.iter().zip(cold) {
        let mut program = Program::start(&mut run_from(template, &[], &code(asked)));
        program.stdin = None;
        let warm = program.end(PATIENCE);
        let warm = (
            warm.code.unwrap(),
            placeless(&text(&warm.stdout)),
            placeless(&warm.stderr),
        );
        // As a shell has signals.
        let status = if status < 0 { 128 - status } else { status };
        let cold = (status, placeless(&stdout), placeless(&stderr));
        if warm != cold {
            differ.push(format!("{asked}\ncold {cold:?}\nwarm {warm:?}\n"));
        }
    }
    assert!(
        differ.is_empty(),
        "{} differ:\n{}",
        differ.len(),
        differ.join("\n")
    );
}

/// Flags, code and input.
type Case<'a> = (&'a [&'a str], &'a str, Option<&'a [u8]>);

/// A run that boots and one from the template, with the same flags.
fn assert_same(
    template: &str,
    image: &str,
    flags: &[&str],
    words: &[&str],
    input: Option<&[u8]>,
) -> Shown {
    let cold = shown(run(image, &[&["--cold"], flags].concat(), words), input);
    let warm = shown(run_from(template, flags, words), input);
    assert_eq!(cold, warm, "{flags:?} {words:?}: the first one booted");
    warm
}

#[test]
fn flags_mean_the_same() {
    let host = scratch("flags");
    fs::create_dir_all(host.join("in")).unwrap();
    fs::write(
        host.join("in/module_of_the_hosts.py"),
        "print('imported')\n",
    )
    .unwrap();
    let copy_in = format!("{}:/work", host.join("in").display());
    let closed = host.join("closed");
    fs::create_dir_all(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let closed = format!("{}:/closed", closed.display());
    let environment = "import os, time; print(os.environ, time.tzname, hash('x') if 'PYTHONHASHSEED' in os.environ else 0)";
    let where_and_who = "import os; print(os.getcwd(), os.getuid(), os.getgid(), os.getgroups(), os.access('/root', os.W_OK), os.path.expanduser('~')); os.stat('.')";
    let read_only = "open('/tmp/a', 'w').write('can'); print('so far'); open('/a', 'w')";
    let privileges =
        "print([line for line in open('/proc/self/status') if line[:3] in ('NoN', 'Cap')])";
    let limits = "import resource as r\nprint([r.getrlimit(n) for n in range(16)])\nfiles = [open('/dev/null') for _ in range(100)]";
    let names = "import os, socket; print(socket.gethostname(), os.environ['HOSTNAME'], open('/etc/hostname').read(), open('/etc/hosts').read())";
    let cases: &[Case] = &[
        (
            &["-e", "A=b", "-e", "Z=", "-e", "ODD= x=y "],
            environment,
            None,
        ),
        (&["-e", "PYTHONHASHSEED=0"], environment, None),
        (
            &["-e", "PYTHONOPTIMIZE=1"],
            "import sys; assert False; print(sys.flags)",
            None,
        ),
        (
            &["-e", "LC_ALL=C", "-e", "TZ=Asia/Tokyo"],
            environment,
            None,
        ),
        (&["-e", "PATH=/nowhere"], "print('never')", None),
        (&["-e", "HOME=/tmp"], environment, None),
        (&["-w", "/made/for/this"], where_and_who, None),
        (&["-u", "1000:1001"], where_and_who, None),
        // What is copied in is the user's, but not when it is another one's.
        (
            &["--copy-in", &closed, "-w", "/closed"],
            where_and_who,
            None,
        ),
        (
            &["-u", "1000", "-w", "/sys/kernel/debug"],
            where_and_who,
            None,
        ),
        (&["-w", "/etc/hosts"], where_and_who, None),
        (&["--read-only"], read_only, None),
        (&["--privileged"], privileges, None),
        (&["--ulimit", "nofile=64:64"], limits, None),
        (&["--hostname", "somebody"], names, None),
        (
            &["--copy-in", &copy_in, "-w", "/work"],
            "import os, module_of_the_hosts; print(os.listdir())",
            None,
        ),
        (
            &["-i"],
            "import sys; data = sys.stdin.buffer.read(); print(len(data), data[:20], hash(data) == hash(bytes(range(256)) * 4000))",
            Some(&[&(0..=255).collect::<Vec<u8>>()[..]; 4000].concat()),
        ),
        (
            &["-i"],
            "import sys; print(repr(sys.stdin.read()))",
            Some(b""),
        ),
        (
            &["-i"],
            "print(input(), input())\ninput()",
            Some(b"one\ntwo\n"),
        ),
        (&["-i"], "print('reads nothing')", Some(&[b'x'; 1_000_000])),
        (
            &[],
            "import sys; print(repr(sys.stdin.read()))",
            Some(b"not for you"),
        ),
        // What is printed within a limit depends on how long Python takes to start.
        (&["--timeout", "1s"], "import time; time.sleep(60)", None),
        (&["--max-output", "1000"], "print('x' * 5000)", None),
    ];
    for (flags, asked, input) in cases {
        assert_same(python(), &python_image(), flags, &code(asked), *input);
    }
}

#[test]
fn other_commands_than_code_are_the_same() {
    for words in [
        &[
            "python3",
            "-c",
            "import sys; print(sys.flags, sys.stdout.write_through)",
        ][..],
        &[
            "python3",
            "-u",
            "-c",
            "import sys; print(sys.argv)",
            "an argument",
        ],
        &["python3", "-m", "json.tool", "--help"],
        &["python3", "/nowhere.py"],
        &["sh", "-c", "echo $PPID $0; ps | grep -vc '\\['; exit 5"],
        &["sh", "-c", "kill -9 $$"],
        &["nobody"],
        &["/etc"],
    ] {
        let shown = assert_same(
            python(),
            &python_image(),
            &[],
            &[&["--"], words].concat(),
            None,
        );
        assert!(shown.code.is_some(), "{words:?}");
    }
}

#[test]
fn files_come_out_the_same() {
    let [cold, warm] = ["cold", "warm"].map(|name| scratch("same-out").join(name));
    let asked = "import os\nos.makedirs('/out/deep')\nopen('/out/deep/file', 'wb').write(bytes(range(256)))\nos.chmod('/out/deep/file', 0o640)\nos.symlink('deep/file', '/out/link')\nraise SystemExit(3)";
    let of = |folder: &Path| format!("/out:{}", folder.display());
    let booted = shown(
        run(
            &python_image(),
            &["--cold", "--copy-out", &of(&cold)],
            &code(asked),
        ),
        None,
    );
    let resumed = shown(
        run_from(python(), &["--copy-out", &of(&warm)], &code(asked)),
        None,
    );
    assert_eq!(booted, resumed);
    assert_eq!(booted.code, Some(3), "{booted:?}");
    let files = |folder: &Path| {
        let link = fs::read_link(folder.join("link")).unwrap();
        let mode = fs::metadata(folder.join("deep/file")).unwrap();
        let mode = mode.permissions().mode();
        (link, mode, fs::read(folder.join("deep/file")).unwrap())
    };
    assert_eq!(files(&cold), files(&warm));
    assert_eq!(files(&warm).2.len(), 256);
}

/// The small image, with a command of its own.
fn saved() -> String {
    let config = r#"{
        "Entrypoint": ["/bin/sh", "-c", "echo $0 $1 $GREETING from $(pwd); cat /proc/self/status | head -n 12; exit 6"],
        "Cmd": ["image", "says"],
        "Env": ["GREETING=hello", "PATH=/bin"],
        "WorkingDir": "/data/work",
        "User": "1000"
    }"#;
    busybox::save_image(small_root(), config, &scratch("saved"))
}

#[test]
fn an_images_own_command_is_the_same() {
    let image = saved();
    let _made = Made::new("entrypoint", &image, &[]);
    for (flags, words) in [
        (&[][..], &[][..]),
        (&[], &["--", "others", "say"]),
        (&["--entrypoint", "echo"], &["--", "other"]),
        (&["-u", "0", "-w", "/tmp", "-e", "GREETING=bye"], &[]),
    ] {
        let cold = shown(run(&image, &[&["--cold"], flags].concat(), words), None);
        let warm = shown(run_from("entrypoint", flags, words), None);
        // Process numbers are those of one that has started the same processes before it.
        let plain = |shown: &Shown| {
            let lines = shown.stdout.lines().filter(|line| !line.contains("id:"));
            (
                shown.code,
                lines.map(str::to_owned).collect::<Vec<_>>(),
                shown.stderr.clone(),
            )
        };
        assert_eq!(plain(&cold), plain(&warm), "{flags:?} {words:?}");
        assert!(!warm.stdout.is_empty());
    }
    small();
    let nothing = assert_same("small", &small_image(), &[], &[], None);
    assert_eq!(nothing.code, Some(125), "{nothing:?}");
}

/// All that is on the screen of a terminal that a run has.
fn on_screen(mut command: Command) -> (Option<i32>, String) {
    let mut terminal = Terminal::new(33, 77);
    let mut child = terminal.start(&mut command);
    terminal.let_go();
    let screen = terminal.screen();
    terminal.press(b"typed\r");
    let ended = ends_until(&child, Instant::now() + PATIENCE);
    let _ = child.kill();
    let code = child.wait().unwrap().code();
    assert!(ended, "no end");
    let seen: Vec<u8> = screen.iter().flatten().collect();
    (code, String::from_utf8_lossy(&seen).into_owned())
}

#[test]
fn a_terminal_is_the_same() {
    let asked = "import os, sys\nprint(os.isatty(0), os.ttyname(1), os.get_terminal_size(), os.environ['TERM'], input())\nos.setpgid\nsys.exit(4)";
    let cold = on_screen(run(&python_image(), &["--cold", "-t", "-q"], &code(asked)));
    let warm = on_screen(run_from(python(), &["-t", "-q"], &code(asked)));
    assert_eq!(cold, warm);
    assert_eq!(warm.0, Some(4), "{}", warm.1);
    assert!(warm.1.contains("columns=77, lines=33"), "{}", warm.1);
}

/// A Python that waited has not been started as `python3 -u -c CODE`, and its code runs within that of the one that did the
/// waiting. This is what code can see of it, all of it that is known.
#[test]
fn what_cannot_be_the_same_is_known() {
    let asked = r"
import os, sys, traceback
print(len(traceback.extract_stack()), 'frames')
print(sys.orig_argv[3][:8], open('/proc/self/cmdline', 'rb').read().split(b'\0')[3][:8])
print('gc' in sys.modules, sys.stdin.seekable(), 'A' in os.environ, b'A=b' in open('/proc/self/environ', 'rb').read())
import gc
print(gc.get_freeze_count() > 0)
sys.excepthook = lambda *_: 1/0
{}['key']
";
    let flags = ["-e", "A=b"];
    let cold = [&["--cold"], &flags[..]].concat();
    let cold = shown(run(&python_image(), &cold, &code(asked)), None);
    let warm = shown(run_from(python(), &flags, &code(asked)), None);
    let told = "1 frames\n\nimport  b'\\nimport '\nFalse True True True\nFalse\n";
    assert_eq!((cold.code, cold.stdout.as_str()), (Some(1), told));
    let told = "4 frames\nimport o b'import o'\nTrue False True False\nTrue\n";
    assert_eq!((warm.code, warm.stdout.as_str()), (Some(1), told));
    // A hook that fails itself was called by another.
    let without = warm
        .stderr
        .lines()
        .filter(|line| !line.contains("\"<minivm>\""));
    let without: Vec<_> = without.collect();
    assert_eq!(cold.stderr.lines().collect::<Vec<_>>(), without);
    assert_eq!(warm.stderr.lines().count(), without.len() + 1);
}
