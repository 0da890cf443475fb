//! gVisor with a real image: the trait's contract, and that nothing leads out or is left behind.

// Tests run: with the tools

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ran;

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::Duration;

use minivm_image::{self, Config, Image, Options, Unwatched};
use minivm_machine::cache;
use minivm_machine::folders::{Access, Folder, Volume};
use minivm_machine::session::Event;
use minivm_machine::{CopyIn, Files};
use minivm_sandbox::tools;
use minivm_sandbox::{Backend, Capability, End, Error, Program, Sandbox, Task};
use minivm_tests::given;
use minivm_tests::patience::{wait_until, with_limits_from};
use ran::Ran;
use rustix::process::{getegid, geteuid};

fn python_image() -> Image {
    image_of(&given::python_root())
}

fn image_of(root: &Path) -> Image {
    let cache = cache::folder().unwrap();
    let store = minivm_machine::images::ImageCache::new(&cache).store();
    let source = format!("dir:{}", root.display());
    minivm_image::open(
        &source.parse().unwrap(),
        &store,
        &Options::default(),
        &Unwatched,
    )
    .unwrap()
}

fn open(change: impl FnOnce(&mut Config)) -> Box<dyn Sandbox> {
    open_in(&cache::folder().unwrap(), change)
}

fn open_in(cache: &Path, change: impl FnOnce(&mut Config)) -> Box<dyn Sandbox> {
    let mut image = python_image();
    change(&mut image.config);
    let host = ran::host(cache.to_owned(), Some(image));
    let sandbox = host.open(Backend::Gvisor).unwrap();
    if sandbox.check().is_err() {
        tools::install_runsc(&host.cache, &mut |line| eprintln!("{line}")).unwrap();
        sandbox.check().unwrap();
    }
    sandbox
}

static SANDBOX: LazyLock<Box<dyn Sandbox>> = LazyLock::new(|| open(|_| {}));

fn run(task: Task) -> Ran {
    ran::run(&**SANDBOX, task)
}

fn python(code: &str) -> Ran {
    run(Task::code(code))
}

fn command(words: &[&str]) -> Task {
    Task::new(Program::Command(words.iter().map(Into::into).collect()))
}

fn shell(script: &str) -> Ran {
    run(command(&["sh", "-c", script]))
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn two_and_two_are_four() {
    let ran = python("print(2+2)");
    assert_eq!((&*ran.stdout, &*ran.stderr), ("4\n", ""));
    assert_eq!(ran.finished.end, End::Exited(0));
    assert_eq!(ran.finished.exception, None);
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn outputs_stay_apart_and_text_is_unicode() {
    let ran = python("import sys; print('ä€🦆'); print('err', file=sys.stderr)");
    assert_eq!((&*ran.stdout, &*ran.stderr), ("ä€🦆\n", "err\n"));
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn exit_codes_and_signals_are_the_codes() {
    for code in [0, 1, 2, 7, 124, 125, 126, 127, 128, 255] {
        let ran = shell(&format!("exit {code}"));
        assert_eq!(ran.finished.end, End::Exited(code), "{}", ran.stderr);
    }
    for signal in [6, 9, 11, 15] {
        let ran = shell(&format!("kill -{signal} $$"));
        assert_eq!(ran.finished.end, End::Signal(signal), "{}", ran.stderr);
    }
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn output_that_looks_like_runscs_errors_is_the_commands() {
    let ran = shell("echo running container: starting container: no such file >&2; exit 128");
    assert_eq!(ran.finished.end, End::Exited(128));
    assert!(
        ran.stderr.starts_with("running container: "),
        "{}",
        ran.stderr
    );
    let ran = shell("ls -l /proc/self/fd; echo x >&3; echo x >&4; echo x >&5; exit 3");
    assert_eq!(
        ran.finished.end,
        End::Exited(3),
        "only the streams are inherited"
    );
    assert_eq!(
        ran.stderr.matches("Bad file descriptor").count(),
        3,
        "{}",
        ran.stderr
    );
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn a_missing_command_and_a_file_that_is_no_program_end_differently() {
    for missing in ["no-such-command", "/no/such/command"] {
        let ran = run(command(&[missing, "x"]));
        match &ran.finished.end {
            End::NotFound(why) => assert!(why.starts_with(missing), "{why}"),
            end => panic!("{end:?}"),
        }
        assert_eq!(ran.stderr, "");
    }
    for no_program in ["/usr", "/proc/version"] {
        let ran = run(command(&[no_program]));
        match &ran.finished.end {
            End::NotExecutable(why) => assert!(why.starts_with(no_program), "{why}"),
            end => panic!("{end:?}"),
        }
        assert_eq!(ran.stderr, "");
    }
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn input_is_read_to_its_end() {
    let code = "import sys; data = sys.stdin.buffer.read(); print(len(data), data[:5])";
    let input = [b"hello".to_vec(), vec![0; 300_000]].concat();
    let ran = run(Task::code(code).with_input(&input).unwrap());
    assert_eq!(ran.stdout, "300005 b'hello'\n");
    assert_eq!(python("import sys; print(sys.stdin.read())").stdout, "\n");
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn writes_are_whole_and_users_can_open_their_outputs() {
    let ran = python("import os, sys\nprint(os.write(1, b'x' * 1000000), file=sys.stderr)");
    assert_eq!((ran.stdout.len(), &*ran.stderr), (1_000_000, "1000000\n"));
    let sandbox = open(|config| config.user = "1000".into());
    let ran = ran::run(
        &*sandbox,
        command(&["sh", "-c", "echo out >/dev/stdout; id -u >/dev/stderr"]),
    );
    assert_eq!((&*ran.stdout, &*ran.stderr), ("out\n", "1000\n"));
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn background_processes_do_not_delay_the_end_or_cut_output() {
    let ran = shell("(sleep 1000 &); sleep 1001 & head -c 100000 /dev/zero; exit 5");
    assert_eq!(ran.finished.end, End::Exited(5));
    assert_eq!(ran.stdout.len(), 100_000);
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn an_exception_has_a_type_a_message_and_a_line() {
    let ran = python("def f():\n    raise ValueError('not this')\nf()");
    assert_eq!(ran.finished.end, End::Exited(1));
    let exception = ran.finished.exception.unwrap();
    assert_eq!(exception.kind, "ValueError");
    assert_eq!(exception.message, "not this");
    assert_eq!(exception.line, Some(2));
    assert!(ran.stderr.ends_with("ValueError: not this\n"));
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn the_time_limit_ends_it_with_what_it_has_printed() {
    with_limits_from(Duration::from_secs(2), |limit| {
        let mut task = Task::code("print('begun')\nwhile True: pass");
        task.limits.time = Some(limit);
        let ran = run(task);
        assert_eq!(ran.finished.end, End::TimedOut);
        (ran.stdout == "begun\n").then_some(())
    });
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn code_beyond_the_memory_limit_is_ended() {
    for code in [
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "with open('/file', 'wb') as f:\n    while True: f.write(bytes(1 << 20))",
        "with open('/tmp/file', 'wb') as f:\n    while True: f.write(bytes(1 << 20))",
    ] {
        let mut task = Task::code(code);
        task.limits.memory = Some(200 << 20);
        let ran = run(task);
        assert_eq!(ran.finished.end, End::OutOfMemory, "{code}: {}", ran.stderr);
        let peak = ran.finished.usage.peak_memory.unwrap();
        assert!((50 << 20..500 << 20).contains(&peak), "{peak}");
    }
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn the_number_of_processes_is_limited() {
    let code = "import os, time, signal\nchildren = []\ntry:\n    while True:\n        child = os.fork()\n        \
                if child == 0: time.sleep(1000); os._exit(0)\n        children.append(child)\n\
                except BlockingIOError: print('enough', len(children))\nfor c in children: os.kill(c, signal.SIGKILL)";
    let mut task = Task::code(code);
    // So many processes take more than the default limit.
    task.limits.memory = Some(6 << 30);
    let ran = run(task);
    assert_eq!(ran.finished.end, End::Exited(0), "{}", ran.stderr);
    assert!(ran.stdout.starts_with("enough "), "{}", ran.stdout);
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn a_flood_is_cut() {
    let ran = with_limits_from(Duration::from_secs(2), |limit| {
        let mut task = Task::code("while True: print('x' * 1000)");
        task.limits.output = Some(10_000);
        task.limits.time = Some(limit);
        let ran = run(task);
        (ran.stdout.len() >= 10_000).then_some(ran)
    });
    assert_eq!(ran.stdout.len(), 10_000);
    assert!(ran.finished.truncated && ran.finished.end == End::TimedOut);
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn the_environment_is_the_images_and_the_users() {
    let sandbox = open(|config| config.env = vec!["A=image".into(), "B=image".into()]);
    let mut task = command(&["env"]);
    let odd = OsStr::from_bytes(b"\xff").to_owned();
    task.env = vec![("A".into(), "user's = ä".into()), ("ODD".into(), odd)];
    let ran = ran::run(&*sandbox, task);
    let mut lines: Vec<&str> = ran.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "A=user's = ä",
            "B=image",
            "HOME=/",
            "HOSTNAME=minivm",
            "ODD=\u{fffd}",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ],
        "no variable of the host"
    );
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn user_and_folder_are_the_images() {
    let sandbox = open(|config| {
        config.user = "1000:7".into();
        config.working_dir = "/work/not/there".into();
    });
    let script = "id -u; id -g; pwd; touch /tmp/x && echo wrote; touch /x; grep CapEff /proc/self/status; hostname";
    let ran = ran::run(&*sandbox, command(&["sh", "-c", script]));
    assert_eq!(
        ran.stdout, "1000\n7\n/work/not/there\nwrote\nCapEff:\t0000000000000000\nminivm\n",
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("Permission denied"), "{}", ran.stderr);
    let sandbox = open(|config| config.user = "nobody-there".into());
    let error = sandbox.run(command(&["true"])).unwrap_err();
    let expected = "the backend gvisor failed: the image has no user nobody-there";
    assert_eq!(error.to_string(), expected);
}

/// Many servers open their logs by such a name.
#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn any_user_can_open_the_outputs_by_name() {
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; echo again > /proc/self/fd/1";
    for user in ["", "1000", "1000:7"] {
        let sandbox = open(|config| config.user = user.into());
        let ran = ran::run(&*sandbox, command(&["sh", "-c", script]));
        assert_eq!((&*ran.stdout, &*ran.stderr), ("out\nagain\n", "err\n"));
    }
}

/// Where minivm is root, the sandbox's processes on the host are not, but root inside may still read root's files of the image.
#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn root_reads_files_that_only_root_may_read() {
    let cache = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-a")
        .arg(given::python_root().join("."))
        .arg(root.path());
    assert!(copy.status().unwrap().success());
    let secret = root.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("file"), "for root\n").unwrap();
    fs::set_permissions(secret.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    let host = ran::host(cache.path().to_owned(), Some(image_of(root.path())));
    let assets = cache::folder().unwrap().join("assets");
    symlink(assets, host.cache.join("assets")).unwrap();
    let sandbox = host.open(Backend::Gvisor).unwrap();
    let script = "cat /secret/file; stat -c '%u %a' /secret /secret/file; echo more >> /secret/file; wc -l < /secret/file";
    let ran = ran::run(&*sandbox, command(&["sh", "-c", script]));
    assert_eq!(ran.stdout, "for root\n0 700\n0 600\n2\n", "{}", ran.stderr);
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn files_are_copied_in_and_are_the_guests_own() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    fs::write(folder.path().join("data/a.txt"), "from the host").unwrap();
    fs::write(folder.path().join("single"), vec![b'x'; 3 << 20]).unwrap();
    let single = fs::File::open(folder.path().join("single")).unwrap();
    let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    single.set_modified(old).unwrap();
    let files = |from: &str, to: &str| Files {
        from: folder.path().join(from),
        to: to.into(),
    };
    let mut task = command(&[
        "sh",
        "-c",
        "stat -c %Y /new/folder/single; cat /usr/a.txt; ls -d /usr/bin; echo more >> /usr/a.txt; wc -c < /new/folder/single; tail -n 1 /usr/a.txt",
    ]);
    let both = vec![files("data", "/usr"), files("single", "/new/folder/")];
    task.files = CopyIn::of(both).unwrap();
    let ran = run(task);
    assert_eq!(
        ran.stdout, "1000000000\nfrom the host/usr/bin\n3145728\nfrom the hostmore\n",
        "{}",
        ran.stderr
    );
    let kept = fs::read(folder.path().join("data/a.txt")).unwrap();
    assert_eq!(kept, b"from the host");
    let error = CopyIn::of(vec![files("missing", "/x")]).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

/// Returns the cached roots, without the locks beside them and unfinished roots, whose names have an extension.
fn kept_roots() -> Vec<PathBuf> {
    let kept = cache::folder().unwrap().join("rootfs");
    let entries = fs::read_dir(kept)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_none()).collect()
}

/// Lists all files and folders below a folder, with sizes and times.
fn state(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            all.push(format!(
                "{:?} {} {:?}",
                entry.path(),
                metadata.len(),
                metadata.modified()
            ));
        }
    }
    all.sort();
    all
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn files_that_a_run_writes_are_gone_after_it() {
    LazyLock::force(&SANDBOX);
    let before: Vec<_> = kept_roots()
        .into_iter()
        .map(|root| (state(&root), root))
        .collect();
    assert!(!before.is_empty());
    let code = "import os, shutil\nopen('/bin/cat', 'w').write('x')\nopen('/new', 'w').write('x')\n\
                shutil.rmtree('/usr/lib')\nos.mkdir('/etc/more')\nos.chmod('/', 0o777)\nprint(os.path.exists('/new'), os.path.exists('/usr/lib'))";
    let ran = python(code);
    assert_eq!(ran.stdout, "True False\n", "{}", ran.stderr);
    for (before, root) in before {
        let after = state(&root);
        let changed = after.iter().find(|entry| !before.contains(entry));
        assert_eq!(changed, None, "{}", root.display());
        assert_eq!(after.len(), before.len(), "{}", root.display());
    }
    assert_eq!(shell("ls -d /new /etc/more").stdout, "");
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn runs_at_once_see_nothing_of_each_other() {
    let code = "import os, time\nopen('/tmp/mine', 'x').write('1')\ntime.sleep(1)\nprint(os.listdir('/tmp'), os.getpid())";
    thread::scope(|scope| {
        let runs = [(); 3].map(|()| scope.spawn(|| python(code)));
        for run in runs {
            // Init is the first of each sandbox's processes.
            assert_eq!(run.join().unwrap().stdout, "['mine'] 2\n");
        }
    });
}

/// Counts the processes that have this folder mounted or in their arguments.
fn processes_with(folder: &Path) -> usize {
    let folder = folder.to_str().unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let names = |process: &Path, file| {
        let text = fs::read(process.join(file)).unwrap_or_default();
        String::from_utf8_lossy(&text).contains(folder)
    };
    let names = |process: &Path| names(process, "cmdline") || names(process, "mountinfo");
    entries.filter(|entry| names(&entry.path())).count()
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn a_stopped_run_leaves_no_processes_and_frees_its_root() {
    LazyLock::force(&SANDBOX);
    let own_cache = tempfile::tempdir().unwrap();
    let assets = own_cache.path().join("assets");
    std::os::unix::fs::symlink(cache::folder().unwrap().join("assets"), assets).unwrap();
    let sandbox = open_in(own_cache.path(), |_| {});
    let (sender, events) = mpsc::channel();
    let mut task = command(&["sh", "-c", "sleep 4711 & sleep 4711"]);
    task.events = events;
    thread::scope(|scope| {
        let run = scope.spawn(|| ran::run(&*sandbox, task));
        while processes_with(own_cache.path()) < 3 {
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_millis(500));
        sender.send(Event::Signal(15)).unwrap();
        assert_eq!(run.join().unwrap().finished.end, End::Stopped(15));
    });
    wait_until("its processes are still there", || {
        processes_with(own_cache.path()) == 0
    });
    let images = minivm_machine::images::ImageCache::new(own_cache.path());
    assert_eq!(images.clear(&[]).unwrap(), 0, "the root is in use");
    drop(sandbox);
    assert!(images.clear(&[]).unwrap() > 1 << 20);
    let kept = fs::read_dir(own_cache.path().join("rootfs")).unwrap();
    assert_eq!(kept.count(), 0);
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn code_cannot_connect_to_a_listener_on_the_host() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let code = format!(
        "import socket\nfor host in ['127.0.0.1', '10.0.0.1', '1.1.1.1']:\n    try: \
         socket.create_connection((host, {port}), timeout=2); print('connected')\n    except OSError as e: print('no')"
    );
    assert_eq!(python(&code).stdout, "no\nno\nno\n");
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn nothing_of_the_host_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "host's secret").unwrap();
    let paths = [
        secret.display().to_string(),
        env!("CARGO_MANIFEST_DIR").into(),
        "/runsc".into(),
        "/bundle".into(),
    ];
    for path in paths {
        assert_eq!(shell(&format!("ls -d {path}")).stdout, "", "{path}");
    }
    // Cargo has set variables for this program.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    let ran = shell("cat /proc/*/environ /proc/*/cmdline; ls /proc; uname -a; dmesg");
    assert!(!ran.stdout.contains("CARGO"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("runsc"), "{}", ran.stdout);
    assert!(ran.stdout.contains("gVisor"), "{}", ran.stdout);
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn undeclared_capabilities_are_refused() {
    let mut task = Task::code("pass");
    task.suspend_at.insert("ask".into());
    let error = SANDBOX.run(task).unwrap_err();
    let what = Capability::Snapshot;
    assert!(
        matches!(error, Error::NotSupported { what: refused, .. } if refused == what),
        "{error}"
    );
    let error = SANDBOX.run(command(&[])).unwrap_err();
    assert!(error.to_string().contains("no command"), "{error}");
}

/// Makes a task that shares a folder or file, without what is protected by default.
fn sharing(source: &Path, at: &str, access: Access, script: &str) -> Task {
    let mut task = command(&["sh", "-c", script]);
    let mut folder = Folder::new(source, access);
    folder.protect.clear();
    let at = at.into();
    task.volumes.push(Volume { folder, at });
    task
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn a_folder_that_may_be_changed_is_changed_here_and_its_files_are_this_users() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("tool"), "#!/bin/sh\necho from a tool\n").unwrap();
    fs::set_permissions(path("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    let script = "cd /deep/in/the/image && ./tool && mkdir -p a/b && echo new > a/b/c && chmod 750 a/b/c \
                  && ln -s c a/b/link && mv tool moved && stat -c '%u:%g' moved a/b/c";
    let task = sharing(
        folder.path(),
        "/deep/in/the/image",
        Access::ReadWrite,
        script,
    );
    let ran = run(task);
    assert_eq!(ran.stdout, "from a tool\n0:0\n0:0\n", "{}", ran.stderr);
    let made = fs::metadata(path("a/b/c")).unwrap();
    let user = (geteuid().as_raw(), getegid().as_raw());
    assert_eq!((made.uid(), made.gid()), user);
    assert_eq!(made.mode() & 0o7777, 0o750);
    assert_eq!(fs::read(path("a/b/c")).unwrap(), b"new\n");
    assert_eq!(fs::read_link(path("a/b/link")).unwrap(), Path::new("c"));
    let moved = fs::metadata(path("moved")).unwrap();
    assert_eq!((moved.uid(), moved.mode() & 0o7777), (user.0, 0o755));
    assert!(!path("tool").exists());
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn a_read_only_folder_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "as it was\n").unwrap();
    let before = state(folder.path());
    let script = r#"
import ctypes, errno, os
os.chdir('/ro')
print(open('file').read(), end='')
remount = lambda: ctypes.CDLL(None).mount(b'none', b'/ro', None, 32, None)
for at, act in enumerate([
    lambda: open('new', 'w'),
    lambda: open('file', 'a'),
    lambda: os.truncate('file', 0),
    lambda: os.unlink('file'),
    lambda: os.mkdir('folder'),
    lambda: os.chmod('file', 0o777),
    lambda: os.utime('file', (0, 0)),
    lambda: os.rename('file', 'other'),
    lambda: os.link('file', 'other'),
    lambda: os.symlink('file', 'other'),
]):
    try:
        act()
        print(at, 'was done')
    except OSError as error:
        if error.errno != errno.EROFS:
            print(at, error)
print(remount())
"#;
    let mut task = sharing(folder.path(), "/ro", Access::ReadOnly, "");
    task.program = Program::Code(script.into());
    let ran = run(task);
    assert_eq!(ran.stdout, "as it was\n-1\n", "{}", ran.stderr);
    assert_eq!(state(folder.path()), before);
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn no_link_leads_out_of_a_folder() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(place.path().join("secret"), "secret").unwrap();
    let absolute = place.path().join("secret");
    symlink(&absolute, folder.join("absolute")).unwrap();
    symlink("../secret", folder.join("relative")).unwrap();
    symlink(place.path(), folder.join("above")).unwrap();
    symlink("/proc/self/root", folder.join("root")).unwrap();
    let secret = absolute.display();
    let script = format!(
        "cd /work; ln -s {secret} made; cat absolute relative made above/secret root{secret} ../secret /shared/0/../secret /work/..{secret}; \
         echo overwritten > absolute; echo overwritten > relative; ls -d relative"
    );
    let ran = run(sharing(&folder, "/work", Access::ReadWrite, &script));
    assert_eq!(ran.stdout, "relative\n", "{}", ran.stderr);
    assert_eq!(fs::read(&absolute).unwrap(), b"secret");
    assert_eq!(fs::read_link(folder.join("made")).unwrap(), absolute);
}

/// A program with such a bit would be this user's for all users of the host.
#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn no_file_gets_a_set_id_bit() {
    let folder = tempfile::tempdir().unwrap();
    // gVisor reports no error where it can't set a mode.
    let script = r#"
import os, stat
os.chdir('/work')
for at, act in enumerate([
    lambda name: os.chmod(name, 0o4755),
    lambda name: os.chmod(name, 0o2755),
    lambda name: os.chmod(name, 0o6755),
    lambda name: os.fchmod(os.open(name, os.O_RDWR), 0o4755),
    lambda name: os.close(os.open(name + 'x', os.O_CREAT | os.O_WRONLY, 0o4755)),
    lambda name: os.mknod(name + 'y', 0o2755 | stat.S_IFREG),
    lambda name: os.mkdir(name + 'z', 0o6755),
    lambda name: os.chmod(name, 0o755),
]):
    open(str(at), 'w').close()
    try:
        act(str(at))
    except PermissionError:
        pass
"#;
    let mut task = sharing(folder.path(), "/work", Access::ReadWrite, "");
    task.program = Program::Code(script.into());
    let ran = run(task);
    assert_eq!(ran.finished.end, End::Exited(0), "{}", ran.stderr);
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().mode();
        assert_eq!(mode & 0o6000, 0, "{:?} {mode:o}", entry.path());
    }
    let last = fs::metadata(folder.path().join("7")).unwrap();
    assert_eq!(last.mode() & 0o7777, 0o755, "other modes are set");
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn files_and_several_folders_have_their_places() {
    let place = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        fs::create_dir(place.path().join(name)).unwrap();
        fs::write(place.path().join(name).join("file"), name).unwrap();
    }
    let file = place.path().join("single");
    fs::write(&file, "single").unwrap();
    let script = "cat /init /new/place/single /mnt/one/file /mnt/two/file; echo more >> /new/place/single; \
                  echo x > /init; ls /mnt/one/file; ls -d /bin/sh";
    let mut task = sharing(&file, "/new/place/single", Access::ReadWrite, script);
    for (source, at) in [
        ("single", "/init"),
        ("one", "/mnt/one"),
        ("two", "/mnt/two"),
    ] {
        let other = sharing(&place.path().join(source), at, Access::ReadOnly, "");
        task.volumes.extend(other.volumes);
    }
    let ran = run(task);
    let expected = "singlesingleonetwo/mnt/one/file\n/bin/sh\n";
    assert_eq!(ran.stdout, expected, "{}", ran.stderr);
    assert_eq!(fs::read(&file).unwrap(), b"singlemore\n");
}

#[test]
#[ignore = "needs a root file system and runsc: cargo xtask test"]
fn folders_that_cannot_be_shared_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("file"), "").unwrap();
    for (source, at, said) in [
        (path.join("none"), "/a", "cannot share /"),
        (
            "/dev/null".into(),
            "/a",
            "cannot share /dev/null: it is a device",
        ),
        (
            path.join("file"),
            "/etc",
            "gVisor can't share at /etc: in the image, /etc is a folder",
        ),
        (
            path.into(),
            "/init",
            "gVisor can't share at /init: in the image, /init is a file",
        ),
        (
            path.into(),
            "/init/x",
            "gVisor can't share at /init/x: in the image, /init is a file",
        ),
        (
            path.into(),
            "/bin/sh",
            "gVisor can't share at /bin/sh: in the image, /bin/sh is a link",
        ),
    ] {
        let error = SANDBOX
            .run(sharing(&source, at, Access::ReadOnly, ""))
            .unwrap_err();
        assert!(error.to_string().starts_with(said), "{error}");
    }
    let mut task = sharing(path, "/a", Access::ReadOnly, "");
    task.volumes[0].folder.hide.push("x".into());
    let error = SANDBOX.run(task).unwrap_err();
    let what = Capability::FolderRules;
    assert!(
        matches!(error, Error::NotSupported { what: refused, .. } if refused == what),
        "{error}"
    );
    // Another user's files would belong to no user of the jail's.
    if geteuid().is_root() {
        chown(path, Some(12345), None).unwrap();
        let error = SANDBOX
            .run(sharing(path, "/a", Access::ReadWrite, ""))
            .unwrap_err();
        let error = format!("{:#}", anyhow::Error::from(error));
        assert!(error.contains("it belongs to user 12345"), "{error}");
    }
}
