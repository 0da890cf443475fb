//! What holds for every sandbox.

use std::sync::mpsc;
use std::time::Duration;

use minivm_machine::folders::{Access, Folder, Volume};
use minivm_machine::session::Event;
use minivm_machine::{CopyIn, Files};
use minivm_sandbox::{Backend, Capability, End, Error, Program, Sandbox, Task};
use minivm_tests::output::Shared;
use minivm_tests::patience::with_limits_from;

use crate::host::{code, run};

pub(crate) fn prints_the_answer(sandbox: &dyn Sandbox) {
    let ran = run(sandbox, code("print(2+2)"));
    assert_eq!(ran.finished.end, End::Exited(0), "{ran:?}");
    assert_eq!((&*ran.stdout, &*ran.stderr), ("4\n", ""));
    assert!(!ran.finished.truncated && ran.finished.exception.is_none());
    assert_eq!(ran.finished.warnings, []);
}

pub(crate) fn keeps_the_outputs_apart(sandbox: &dyn Sandbox) {
    let ran = run(sandbox, code("print('out')\nraise ValueError('err')"));
    assert_eq!(ran.stdout, "out\n", "{ran:?}");
    assert!(ran.stderr.ends_with("ValueError: err\n"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("out\n"), "{}", ran.stderr);
    if sandbox.backend() != Backend::Monty {
        let text = "import sys\nprint('a')\nprint('b', file=sys.stderr)\nsys.stdout.write('c')";
        let ran = run(sandbox, code(text));
        assert_eq!((&*ran.stdout, &*ran.stderr), ("a\nc", "b\n"));
    }
}

pub(crate) fn knows_unicode(sandbox: &dyn Sandbox) {
    let text = "naïve ✓ Ωμέγα 漢字 🦀";
    let ran = run(sandbox, code(&format!("s = '{text}'\nprint(s, len(s))")));
    let expected = format!("{text} {}\n", text.chars().count());
    assert_eq!(ran.stdout, expected, "{ran:?}");
}

pub(crate) fn tells_type_message_and_line_of_an_exception(sandbox: &dyn Sandbox) {
    for (text, expected) in [
        (
            "x = 1\n\nx / 0\n",
            ("ZeroDivisionError", "division by zero", 3),
        ),
        (
            "def f(x):\n    raise TypeError('not ' + x)\n\nf('this: one')",
            ("TypeError", "not this: one", 2),
        ),
        (
            "try:\n    [][1]\nexcept IndexError:\n    raise RuntimeError('k')",
            ("RuntimeError", "k", 4),
        ),
    ] {
        let ran = run(sandbox, code(text));
        let exception = ran.finished.exception.as_ref();
        let exception = exception.unwrap_or_else(|| panic!("{ran:?}"));
        let told = (
            &*exception.kind,
            &*exception.message,
            exception.line.unwrap(),
        );
        assert_eq!(told, expected, "{ran:?}");
        assert_eq!(ran.finished.end, End::Exited(1));
        assert!(
            exception
                .traceback
                .starts_with("Traceback (most recent call last):\n")
        );
    }
    let ran = run(sandbox, code("x = 1\ny = = 2\n"));
    let exception = ran.finished.exception.as_ref();
    let exception = exception.unwrap_or_else(|| panic!("{ran:?}"));
    assert_eq!(
        (&*exception.kind, exception.line),
        ("SyntaxError", Some(2)),
        "{ran:?}"
    );
}

pub(crate) fn passes_exit_codes_on(sandbox: &dyn Sandbox) {
    let ran = run(sandbox, code("raise SystemExit(42)"));
    assert_eq!(ran.finished.end, End::Exited(42), "{ran:?}");
    let ran = run(sandbox, code("pass"));
    assert_eq!(ran.finished.end, End::Exited(0), "{ran:?}");
    if sandbox.backend() != Backend::Monty {
        let ran = run(
            sandbox,
            code("import sys\nprint('x')\nsys.exit(7)\nprint('y')"),
        );
        assert_eq!(ran.finished.end, End::Exited(7), "{ran:?}");
        assert_eq!((&*ran.stdout, &*ran.stderr), ("x\n", ""));
    }
}

/// How long a sandbox takes until code runs, where the machine is idle.
fn start_up(backend: Backend) -> Duration {
    match backend {
        // Its limit counts from the command's start, and Python takes a second in the lab.
        Backend::Microvm => Duration::from_secs(3),
        Backend::Gvisor => Duration::from_secs(2),
        Backend::Monty => Duration::from_secs(1),
        Backend::Deno => Duration::from_secs(4),
        Backend::Chromium => Duration::from_secs(6),
    }
}

pub(crate) fn ends_an_endless_loop(sandbox: &dyn Sandbox) {
    with_limits_from(start_up(sandbox.backend()), |limit| {
        let mut task = Task::code("print('begun')\nwhile True:\n    pass");
        task.limits.time = Some(limit);
        let ran = run(sandbox, task);
        assert_eq!(ran.finished.end, End::TimedOut, "{ran:?}");
        assert!(ran.finished.usage.total >= limit, "{ran:?}");
        // What came before is kept.
        (ran.stdout == "begun\n").then_some(())
    });
}

pub(crate) fn ends_a_memory_hog(sandbox: &dyn Sandbox) {
    let mib = match sandbox.backend() {
        Backend::Microvm | Backend::Gvisor => 256,
        Backend::Monty => 64,
        Backend::Deno => 700,
        Backend::Chromium => 1200,
    };
    let mut task = code("a = []\nwhile True:\n    a.append('x' * 1000000)");
    task.limits.memory = Some(mib << 20);
    let ran = run(sandbox, task);
    let kind = ran
        .finished
        .exception
        .as_ref()
        .map(|exception| &*exception.kind);
    let ended = ran.finished.end == End::OutOfMemory || kind == Some("MemoryError");
    assert!(ended, "{ran:?}");
    // The microVM's own is the guest's and a bit.
    let most = (mib + mib / 4) << 20;
    let peak = ran.finished.usage.peak_memory.unwrap_or_default();
    assert!(peak <= most, "{peak} of {most} bytes");
}

pub(crate) fn cuts_a_flood(sandbox: &dyn Sandbox) {
    let mut task = code("for i in range(3000):\n    print('x' * 999)\nprint('end')");
    task.limits.output = Some(100_000);
    let ran = run(sandbox, task);
    assert_eq!(ran.finished.end, End::Exited(0), "{:?}", ran.finished);
    assert_eq!(ran.stdout.len(), 100_000);
    assert!(ran.finished.truncated && !ran.stdout.contains("end"));
}

pub(crate) fn reads_its_input(sandbox: &dyn Sandbox) {
    let task = code("a = input()\nb = input()\nprint(b + a)");
    let ran = run(
        sandbox,
        task.with_input("größer\nund \n".as_bytes()).unwrap(),
    );
    assert_eq!(ran.stdout, "und größer\n", "{ran:?}");
    let ran = run(sandbox, code("input()"));
    let kind = ran
        .finished
        .exception
        .as_ref()
        .map(|exception| &*exception.kind);
    assert_eq!(kind, Some("EOFError"), "no input has ended: {ran:?}");
}

pub(crate) fn refuses_what_it_has_not_declared(sandbox: &dyn Sandbox) {
    let able = sandbox.capabilities();
    let refused = |task: Task, needed: Capability| {
        if able.contains(&needed) {
            return;
        }
        match sandbox.run(task) {
            Err(Error::NotSupported { backend, what }) => {
                assert_eq!((backend, what), (sandbox.backend(), needed));
            }
            other => panic!("{needed}: {other:?}"),
        }
    };
    let command = Program::Command(vec!["true".into()]);
    refused(Task::new(command), Capability::Commands);
    let mut task = code("pass");
    task.env.push(("A".into(), "1".into()));
    refused(task, Capability::Environment);
    let mut task = code("pass");
    task.functions
        .insert("f".into(), Box::new(|_| Err("no".into())));
    refused(task, Capability::HostFunctions);
    let mut task = code("pass");
    task.suspend_at.insert("f".into());
    refused(task, Capability::Snapshot);
    let mut task = code("pass");
    let file = Files {
        from: "/etc/hostname".into(),
        to: "/x".into(),
    };
    task.files = CopyIn::of(vec![file]).unwrap();
    refused(task, Capability::Files);
    for (access, needed) in [
        (Access::ReadOnly, Capability::Folders),
        (Access::ReadWrite, Capability::FolderRules),
    ] {
        let mut task = code("pass");
        let (folder, at) = (Folder::new("/", access), "/x".into());
        task.volumes.push(Volume { folder, at });
        let shares = able.contains(&Capability::Folders);
        refused(task, if shares { needed } else { Capability::Folders });
    }
}

pub(crate) fn hands_files_and_variables_in(sandbox: &dyn Sandbox) {
    if !sandbox.capabilities().contains(&Capability::Files) {
        assert_eq!(sandbox.backend(), Backend::Monty, "the others have files");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    std::fs::write(folder.path().join("sub/data.txt"), "déjà\n").unwrap();
    let text = "import os\nprint(open('/data/in/sub/data.txt', encoding='utf8').read().strip(), os.environ['GREETING'])";
    let mut task = code(text);
    let all = Files {
        from: folder.path().into(),
        to: "/data/in".into(),
    };
    task.files = CopyIn::of(vec![all]).unwrap();
    task.env.push(("GREETING".into(), "hällo = x".into()));
    let ran = run(sandbox, task);
    assert_eq!(ran.stdout, "déjà hällo = x\n", "{ran:?}");
}

pub(crate) fn ends_when_it_is_stopped(sandbox: &dyn Sandbox) {
    let (sender, events) = mpsc::channel();
    let mut task = code("print('begun')\nwhile True:\n    pass");
    let printed = Shared::default();
    task.stdout = Box::new(printed.clone());
    task.events = events;
    let finished = std::thread::scope(|scope| {
        let running = scope.spawn(|| sandbox.run(task));
        while printed.0.lock().unwrap().is_empty() && !running.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        sender.send(Event::Stop(15)).unwrap();
        running.join().unwrap()
    });
    assert_eq!(finished.unwrap().end, End::Stopped(15));
}
