//! The backend monty, with the real `minivm-worker` and within this process: most tests run both.

// Tests run: here

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod ran;

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use minivm_machine::session::Event;
use minivm_sandbox::monty::{Allocator, InProcess};
use minivm_sandbox::{Backend, Call, End, Exception, Function, Monty, Program, Sandbox, Task};
use minivm_tests::patience::{PATIENCE, with_limits_from};
use minivm_tests::{processes, stress};
use ran::{Ran, run};
use serde_json::{Value, json};

/// The allocator of programs that limit the memory of `InProcess`.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn sandbox() -> Box<dyn Sandbox> {
    let sandbox = ran::host(PathBuf::new(), None)
        .open(Backend::Monty)
        .unwrap();
    sandbox.check().unwrap();
    sandbox
}

/// The sandbox and the interpreter alone.
fn both() -> [Box<dyn Sandbox>; 2] {
    [sandbox(), Box::new(InProcess)]
}

impl Ran {
    fn exception(&self) -> &Exception {
        let exception = self.finished.exception.as_ref();
        exception.unwrap_or_else(|| panic!("{:?}: {}", self.finished.end, self.stderr))
    }

    #[track_caller]
    fn assert_exited(&self, code: u8) {
        assert_eq!(self.finished.end, End::Exited(code), "{}", self.stderr);
    }
}

fn run_code(sandbox: &dyn Sandbox, code: &str) -> Ran {
    run(sandbox, Task::code(code))
}

fn with_function(
    code: &str,
    name: &str,
    function: impl FnMut(Call) -> Result<Value, String> + Send + 'static,
) -> Task {
    let mut task = Task::code(code);
    let function: Function = Box::new(function);
    task.functions.insert(name.into(), function);
    task
}

#[test]
fn two_and_two_are_four() {
    for sandbox in both() {
        let ran = run_code(&*sandbox, "print(2 + 2)");
        ran.assert_exited(0);
        assert_eq!((&*ran.stdout, &*ran.stderr), ("4\n", ""));
        assert_eq!(ran.finished.exception, None);
        assert!(!ran.finished.truncated && ran.finished.warnings.is_empty());
    }
}

#[test]
fn any_text_is_printed_and_the_outputs_stay_apart() {
    let code = "import sys\nprint('é日本😀', 1, sep='-')\nprint('to', 'stderr', file=sys.stderr)\nprint('x', end='')";
    for sandbox in both() {
        let ran = run_code(&*sandbox, code);
        assert_eq!(ran.stdout, "é日本😀-1\nx");
        assert_eq!(ran.stderr, "to stderr\n");
    }
}

#[test]
fn an_exception_has_type_message_and_line() {
    let code = "def f():\n    raise ValueError('no: not this')\nprint('before')\nf()\n";
    for sandbox in both() {
        let ran = run_code(&*sandbox, code);
        ran.assert_exited(1);
        assert_eq!(ran.stdout, "before\n");
        let exception = ran.exception();
        assert_eq!(exception.kind, "ValueError");
        assert_eq!(exception.message, "no: not this");
        assert_eq!(exception.line, Some(2));
        let first = "Traceback (most recent call last):\n  File \"<string>\", line 4, in <module>\n    f()\n";
        assert!(ran.stderr.starts_with(first), "{}", ran.stderr);
        let ran = run_code(&*sandbox, "x = 1\na b\n");
        let exception = ran.exception();
        assert_eq!((&*exception.kind, exception.line), ("SyntaxError", Some(2)));
    }
}

#[test]
fn exit_codes_are_those_of_exit_and_system_exit() {
    for sandbox in both() {
        for (code, expected, stderr) in [
            ("exit()", 0, ""),
            ("exit(3)", 3, ""),
            ("import sys\nif True:\n    sys.exit(4)", 4, ""),
            ("raise SystemExit(5)", 5, ""),
            ("raise SystemExit", 0, ""),
            ("raise SystemExit('bye')", 1, "bye\n"),
            (
                "try:\n    exit(6)\nexcept SystemExit:\n    print('caught')",
                0,
                "",
            ),
            ("exit(66)", 66, ""),
            ("exit(-1)", 255, ""),
        ] {
            let ran = run_code(&*sandbox, code);
            assert_eq!(
                ran.finished.end,
                End::Exited(expected),
                "{code}: {}",
                ran.stderr
            );
            assert_eq!(ran.stderr, stderr, "{code}");
        }
    }
}

#[test]
fn input_is_read_by_lines_to_its_end() {
    let code = "print(input('? '))\ntry:\n    while True:\n        print([input()])\nexcept EOFError as e:\n    print(e)\n";
    for sandbox in both() {
        let task = Task::code(code).with_input("Zoë\n\nlast".as_bytes());
        let ran = run(&*sandbox, task.unwrap());
        assert_eq!(
            ran.stdout,
            "? Zoë\n['']\n['last']\nEOF when reading a line\n"
        );
        let ran = run_code(&*sandbox, "input()");
        ran.assert_exited(1);
        assert_eq!(ran.exception().kind, "EOFError");
    }
}

#[test]
fn variables_and_the_time_are_there_and_files_are_not() {
    let code = "import os, datetime\nprint(os.environ)\nprint(os.getenv('A'), os.getenv('B', 'none'))\n\
                print(datetime.datetime.now().year > 2024, datetime.date.today().year > 2024)\n\
                try:\n    open('/task')\nexcept PermissionError:\n    print('refused')\n";
    for sandbox in both() {
        let mut task = Task::code(code);
        task.env.push(("A".into(), "1".into()));
        let ran = run(&*sandbox, task);
        assert_eq!(ran.stdout, "{'A': '1'}\n1 none\nTrue True\nrefused\n");
    }
}

#[test]
fn an_endless_loop_is_timed_out_and_what_it_printed_is_seen() {
    for sandbox in both() {
        for code in [
            "print('begun')\nwhile True: pass",
            "print('begun')\ntry:\n    while True: pass\nexcept BaseException:\n    print('caught')",
        ] {
            with_limits_from(Duration::from_millis(300), |limit| {
                let mut task = Task::code(code);
                task.limits.time = Some(limit);
                let ran = run(&*sandbox, task);
                assert_eq!(ran.finished.end, End::TimedOut, "{}", ran.stderr);
                assert_eq!(ran.finished.exception, None);
                (ran.stdout == "begun\n").then_some(())
            });
        }
    }
}

#[test]
fn the_time_of_host_functions_counts_too() {
    for sandbox in both() {
        let slow = |_| {
            thread::sleep(Duration::from_millis(50));
            Ok(Value::Null)
        };
        let mut task = with_function("while True: slow()", "slow", slow);
        task.limits.time = Some(Duration::from_millis(300));
        let ran = run(&*sandbox, task);
        assert_eq!(ran.finished.end, End::TimedOut);
    }
}

#[test]
fn a_function_that_does_not_return_is_not_waited_for() {
    with_limits_from(Duration::from_millis(100), |limit| {
        let (hold, held) = mpsc::channel::<()>();
        let (call, called) = mpsc::channel();
        let stuck = move |_| {
            let _ = call.send(());
            let _ = held.recv();
            Ok(Value::Null)
        };
        let mut task = with_function("stuck()", "stuck", stuck);
        task.limits.time = Some(limit);
        let ran = run(&*sandbox(), task);
        assert_eq!(ran.finished.end, End::TimedOut);
        called.try_recv().ok()?;
        assert!(
            ran.finished.warnings[0]
                .to_string()
                .contains("has not returned")
        );
        drop(hold);
        Some(())
    });
}

#[test]
fn the_memory_limit_holds_in_the_process_too() {
    let limit = 64 << 20;
    for code in [
        "a = []\nwhile True: a.append('x' * 1000)",
        "a = 'x' * 10**9",
        "a = [0] * 10**8",
        "a = 1 << 10**10",
        "a = {i: i for i in range(10**8)}",
        "a = 'x'\nwhile True: a = a + a",
        "try:\n    a = 'x' * 10**9\nexcept BaseException:\n    print('caught')",
    ] {
        for sandbox in both() {
            let mut task = Task::code(code);
            task.limits.memory = Some(limit);
            let ran = run(&*sandbox, task);
            assert_eq!(ran.finished.end, End::OutOfMemory, "{code}: {}", ran.stderr);
            assert_eq!(ran.stdout, "");
            let peak = ran.finished.usage.peak_memory.unwrap_or_default();
            assert!(peak < limit + (8 << 20), "{code}: {peak}");
        }
    }
    let mut task = Task::code("a = 'x' * 10**7\nprint(len(a))");
    task.limits.memory = Some(limit);
    assert_eq!(run(&*sandbox(), task).stdout, "10000000\n");
}

#[test]
fn a_limited_task_within_a_limited_task_is_refused() {
    let limited = || {
        let mut task = Task::code("pass");
        task.limits.memory = Some(1 << 20);
        task
    };
    let mut task = with_function("print(inner())", "inner", move |_| {
        Ok(InProcess.run(limited()).unwrap_err().to_string().into())
    });
    task.limits.memory = Some(1 << 30);
    let ran = run(&InProcess, task);
    assert!(
        ran.stdout.contains("cannot start another one"),
        "{}",
        ran.stdout
    );
}

#[test]
fn deep_recursion_is_an_exception() {
    for sandbox in both() {
        let ran = run_code(&*sandbox, "def f(n):\n    return f(n + 1)\nf(0)");
        ran.assert_exited(1);
        assert_eq!(ran.exception().kind, "RecursionError");
        assert_eq!(ran.exception().line, Some(2));
        let two = "def f():\n    g()\ndef g():\n    f()\nf()";
        let ran = run_code(&*sandbox, two);
        assert_eq!(ran.exception().kind, "RecursionError");
        let nested = format!("{}1{}", "(".repeat(50_000), ")".repeat(50_000));
        let ran = run_code(&*sandbox, &nested);
        assert_eq!(ran.exception().kind, "SyntaxError");
    }
}

#[test]
fn a_crash_of_the_interpreter_ends_the_worker_only() {
    for code in [
        format!("x = 1{}", " + 1".repeat(30_000)),
        format!("x = a{}", ".b".repeat(60_000)),
    ] {
        let ran = run_code(&*sandbox(), &code);
        let ended = ran.finished.end;
        assert!(
            matches!(ended, End::Exited(_) | End::Signal(_)),
            "{ended:?}"
        );
    }
    let ran = run_code(
        &*sandbox(),
        "a = []\nfor i in range(100000): a = [a]\nprint(1)",
    );
    assert_eq!(ran.stdout, "1\n", "{:?} {}", ran.finished.end, ran.stderr);
}

#[test]
fn a_flood_of_output_is_cut() {
    for sandbox in both() {
        let mut task = Task::code("for i in range(100000): print('x' * 100)");
        task.limits.output = Some(1000);
        let ran = run(&*sandbox, task);
        ran.assert_exited(0);
        assert_eq!(ran.stdout.len(), 1000);
        assert!(ran.finished.truncated);
    }
}

#[test]
fn functions_get_arguments_and_return_any_json() {
    let code = "r = ask(1, [2, {'a': None}], b=(True, 1.5), c='é')\nprint(r['list'][1]['deep'], r['n'])\n\
                f = ask\nprint(f)\n";
    for sandbox in both() {
        let (seen, calls) = mpsc::channel();
        let task = with_function(code, "ask", move |call| {
            seen.send(call).unwrap();
            Ok(json!({"list": [1, {"deep": ["x"]}], "n": u64::MAX}))
        });
        let ran = run(&*sandbox, task);
        assert_eq!(
            ran.stdout, "['x'] 18446744073709551615\n<function 'ask' external>\n",
            "{}",
            ran.stderr
        );
        let call = calls.recv().unwrap();
        assert_eq!(call.function, "ask");
        assert_eq!(call.args, [json!(1), json!([2, {"a": null}])]);
        assert_eq!(json!(call.kwargs), json!({"b": [true, 1.5], "c": "é"}));
    }
}

#[test]
fn functions_may_fail_and_may_be_missing() {
    let code = "try:\n    ask()\nexcept RuntimeError as e:\n    print('caught', e)\n\
                try:\n    ask(b'x')\nexcept TypeError as e:\n    print(e)\nunknown(1)\n";
    for sandbox in both() {
        let task = with_function(code, "ask", |_| Err("no such table: x".into()));
        let ran = run(&*sandbox, task);
        ran.assert_exited(1);
        let mut lines = ran.stdout.lines();
        assert_eq!(lines.next(), Some("caught no such table: x"));
        assert!(
            lines
                .next()
                .unwrap()
                .contains("argument of ask(): it is bytes")
        );
        let exception = ran.exception();
        assert_eq!(exception.kind, "NameError");
        assert_eq!(exception.message, "name 'unknown' is not defined");
        assert_eq!(exception.line, Some(9));
    }
}

#[test]
fn calls_and_answers_are_bounded() {
    let sandbox = sandbox();
    let code = "try:\n    ask('x' * 5_000_000)\nexcept RuntimeError as e:\n    print(e)\n\
                try:\n    ask('x')\nexcept RuntimeError as e:\n    print(e)\n";
    let task = with_function(code, "ask", |_| Ok("x".repeat(5_000_000).into()));
    let ran = run(&*sandbox, task);
    assert_eq!(
        ran.stdout.matches("a message is longer than").count(),
        2,
        "{}",
        ran.stderr
    );
}

#[test]
fn answers_that_are_nested_too_deep_are_exceptions() {
    let deep = || (0..1000).fold(Value::Null, |value, _| json!([value]));
    for sandbox in both() {
        let code = "try:\n    ask()\nexcept Exception as e:\n    print(e)\n";
        let ran = run(&*sandbox, with_function(code, "ask", move |_| Ok(deep())));
        ran.assert_exited(0);
        assert!(ran.stdout.contains("deeper than 100"), "{}", ran.stdout);
        let (_, _, state) = suspended(&*sandbox, code);
        let ran = resume(&*sandbox, state, Ok(deep()));
        assert!(ran.stdout.contains("deeper than 100"), "{}", ran.stdout);
    }
}

fn suspended(sandbox: &dyn Sandbox, code: &str) -> (Ran, Call, Vec<u8>) {
    let mut task = Task::code(code);
    task.suspend_at.insert("ask".into());
    let ran = run(sandbox, task);
    match ran.finished.end.clone() {
        End::Suspended { call, state } => (ran, call, state),
        other => panic!("{other:?}: {}", ran.stderr),
    }
}

fn resume(sandbox: &dyn Sandbox, state: Vec<u8>, returned: Result<Value, String>) -> Ran {
    run(sandbox, Task::new(Program::Resume { state, returned }))
}

#[test]
fn code_is_suspended_and_resumed_elsewhere() {
    let code = "x = [1, 2]\nprint('before')\ny = ask('how many?', of=x)\nprint(x, y + 1)\n1 / y\n";
    // Each sandbox resumes the other's state, and one resumes its own.
    let [process, within] = both();
    for (first, second) in [
        (&process, &within),
        (&within, &process),
        (&process, &process),
    ] {
        let (ran, call, state) = suspended(&**first, code);
        assert_eq!(ran.stdout, "before\n");
        assert_eq!(call.args, [json!("how many?")]);
        assert_eq!(json!(call.kwargs), json!({"of": [1, 2]}));
        assert!(state.len() < 2000, "{}", state.len());
        let ran = resume(&**second, state.clone(), Ok(json!(41)));
        ran.assert_exited(0);
        assert_eq!(ran.stdout, "[1, 2] 42\n");
        let ran = resume(&**second, state.clone(), Ok(json!(0)));
        assert_eq!(ran.exception().kind, "ZeroDivisionError");
        assert_eq!(ran.exception().line, Some(5));
        let ran = resume(&**second, state, Err("no answer".into()));
        assert_eq!(ran.exception().message, "no answer");
        assert_eq!(ran.exception().line, Some(3));
    }
}

#[test]
fn resumed_code_has_the_limits_of_its_own_task() {
    for sandbox in both() {
        let (_, _, state) = suspended(&*sandbox, "ask()\nwhile True: pass");
        let mut task = Task::new(Program::Resume {
            state,
            returned: Ok(Value::Null),
        });
        task.limits.time = Some(Duration::from_millis(200));
        assert_eq!(run(&*sandbox, task).finished.end, End::TimedOut);
    }
}

#[test]
fn bytes_that_are_not_a_state_are_refused() {
    for sandbox in both() {
        for state in [
            &b""[..],
            b"nonsense",
            b"MONTY\0\xff\xff",
            b"MONTY\0\x08\0\x01\x02",
        ] {
            let task = Task::new(Program::Resume {
                state: state.to_vec(),
                returned: Ok(Value::Null),
            });
            let error = sandbox.run(task).unwrap_err().to_string();
            assert!(error.contains("cannot be resumed"), "{error}");
        }
    }
}

#[test]
fn a_signal_from_outside_ends_it() {
    for sandbox in both() {
        let (sender, events) = mpsc::channel();
        let mut task = Task::code("while True: pass");
        task.events = events;
        let later = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            sender.send(Event::Signal(15)).unwrap();
        });
        assert_eq!(run(&*sandbox, task).finished.end, End::Stopped(15));
        later.join().unwrap();
    }
}

#[test]
fn output_from_before_an_endless_instruction_is_written() {
    with_limits_from(Duration::from_millis(500), |limit| {
        let mut task = Task::code("print('begun')\nx = 7 ** (10 ** 8)");
        task.limits.time = Some(limit);
        let ran = run(&*sandbox(), task);
        assert_eq!(ran.finished.end, End::TimedOut);
        (ran.stdout == "begun\n").then_some(())
    });
}

#[test]
fn a_closed_output_ends_the_code() {
    for sandbox in both() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut task = Task::code("while True: print('x')");
        task.stdout = Box::new(writer);
        task.limits.time = Some(PATIENCE);
        assert_eq!(sandbox.run(task).unwrap().end, End::OutputClosed);
    }
}

#[test]
fn many_in_a_row_and_several_at_once_leave_nothing() {
    // The path distinguishes this test's processes from those of other tests.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("minivm");
    std::fs::copy(env!("CARGO_BIN_EXE_minivm-worker"), &program).unwrap();
    let sandbox = Monty::new(program.clone());
    for number in 0..stress::count(20, 500) {
        let code = format!("print(f({number}))");
        let task = with_function(&code, "f", |mut call| Ok(call.args.remove(0)));
        assert_eq!(run(&sandbox, task).stdout, format!("{number}\n"));
    }
    thread::scope(|scope| {
        for number in 0..4 {
            let sandbox = &sandbox;
            scope.spawn(move || {
                let code = format!("s = 0\nfor i in range(100000): s += {number}\nprint(s)");
                assert_eq!(
                    run_code(sandbox, &code).stdout,
                    format!("{}\n", number * 100_000)
                );
            });
        }
    });
    assert_eq!(processes::with_argument(program.to_str().unwrap()), 0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn memory_files_are_closed_after_a_run() {
    let open = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
        let names = targets.map(|target| target.display().to_string());
        names
            .filter(|name| name.starts_with("/memfd:minivm"))
            .count()
    };
    for _ in 0..5 {
        run_code(&*sandbox(), "print(1)");
    }
    // Other tests have such files open while they start a process.
    let soon = Instant::now() + PATIENCE;
    while open() > 0 && Instant::now() < soon {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(open(), 0);
}
