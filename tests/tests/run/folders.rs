//! Folders of the host's in a guest: what its programs do with them, and what the host sees of it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use minivm_tests::given;
use minivm_tests::processes;
use minivm_tests::program::{Ended, Program};
use rustix::process::{Pid, Signal, kill_process};

use crate::guest::{
    PATIENCE, assert_well, end_of, noise, our_kernel, run_image, scratch, shell, text_of,
};

/// A new folder.
fn folder(name: &str) -> PathBuf {
    let folder = scratch(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The flags for a volume.
fn volume(source: &Path, rest: &str) -> [String; 2] {
    ["-v".into(), format!("{}:{rest}", source.display())]
}

/// The end of a Python script in a guest with these flags.
fn python(flags: &[String], script: &str) -> Ended {
    let image = format!("dir:{}", given::python_root().display());
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    end_of(run_image(
        &image,
        our_kernel(),
        &flags,
        &["python3", "-c", script],
    ))
}

/// Each check prints its name if it fails.
const CHECKS: &str = r#"
import errno, fcntl, mmap, os, stat, subprocess, threading

def check(name, truth):
    if not truth:
        print("failed:", name)

def refused(name, code, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        check(f"{name}: {error}", error.errno == code)
    else:
        print("allowed:", name)

def write(path, text):
    with open(path, "w") as file:
        file.write(text)

os.chdir("/work")
check("bytes", open("large", "rb").read() == open("large", "rb", buffering=0).read())
check("a name", os.listdir(b"names") == [b"line\nbreak \xff"] and open(b"names/line\nbreak \xff").read() == "odd")
check("a program", subprocess.run(["./program"], capture_output=True).stdout == b"it runs\n")
check("owner", os.stat("large").st_uid == os.getuid())
check("a link", os.readlink("out") == "/etc/only-here" and open("out").read() == "the guest's")
check("a link that leads up", not os.path.exists("up"))

os.makedirs("new/below")
write("new/below/file", "hello")
os.chmod("new/below/file", 0o750)
os.utime("new/below/file", ns=(10**18, 10**18 + 1))
os.symlink("../large", "new/link")
os.link("new/below/file", "new/hard")
check("links", os.stat("new/hard").st_nlink == 2)
write("saved.tmp", "saved")
os.rename("saved.tmp", "saved")
open("gone", "w").close()
with open("gone", "r+") as file:
    os.unlink("gone")
    file.write("x" * 5000)
    file.flush()
    check("a file without a name", os.fstat(file.fileno()).st_size == 5000)
with open("mapped", "w+b") as file:
    file.truncate(3 * 4096)
    with mmap.mmap(file.fileno(), 0) as memory:
        memory[4095:4098] = b"abc"
    with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as memory:
        check("private memory", memory[4095:4098] == b"abc")
        memory[0:1] = b"z"
with open("sparse", "wb") as file:
    file.seek(5 << 30)
    file.write(b"end")
check("a large file", os.stat("sparse").st_size == (5 << 30) + 3)

def append(name):
    for n in range(20):
        with open("log", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(f"{name} {n}\n")
threads = [threading.Thread(target=append, args=(name,)) for name in "abc"]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
lines = open("log").read().splitlines()
check("appended lines", sorted(lines) == sorted(f"{name} {n}" for name in "abc" for n in range(20)))

with open("locked", "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with open("locked") as other:
        refused("a second lock", errno.EWOULDBLOCK, fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB)
for n in range(200):
    write(f"new/{n}", str(n))
check("many names", len(os.listdir("new")) == 203)

refused("a hidden file", errno.ENOENT, open, "secret.key")
check("a hidden name", "secret.key" not in os.listdir("."))
refused("a hook", errno.EROFS, write, ".git/hooks/pre-commit", "evil")
refused("a hooks folder elsewhere", errno.EROFS, os.rename, ".git", "git")
refused("a device", errno.EPERM, os.mknod, "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
check("what is protected can be read", "bare" in open(".git/config").read())

check("read-only", open("/ro/text").read() == "text")
refused("a write where nothing is written", errno.EROFS, write, "/ro/text", "x")
refused("a new file there", errno.EROFS, write, "/ro/new", "x")
with open("/etc/one.conf", "a") as file:
    file.write(" and more")
check("one file", open("/etc/one.conf").read() == "one and more")
check("a mount over another", open("/work/deep/in/text").read() == "text")
print("checked")
"#;

#[test]
fn a_folder_is_shared_with_all_that_programs_do() {
    let here = folder("volumes");
    let (work, quiet) = (here.join("work"), here.join("quiet"));
    fs::create_dir_all(work.join("names")).unwrap();
    fs::create_dir_all(work.join(".git/hooks")).unwrap();
    fs::create_dir_all(work.join("deep/in")).unwrap();
    fs::create_dir(&quiet).unwrap();
    let large = noise(3_000_001);
    fs::write(work.join("large"), &large).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"line\nbreak \xff");
    fs::write(work.join("names").join(odd), "odd").unwrap();
    fs::write(work.join("program"), "#!/bin/sh\necho it runs\n").unwrap();
    fs::set_permissions(work.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(work.join("secret.key"), "secret").unwrap();
    fs::write(work.join(".git/config"), "[core]\nbare = false\n").unwrap();
    symlink("/etc/only-here", work.join("out")).unwrap();
    symlink("../quiet/text", work.join("up")).unwrap();
    fs::write(quiet.join("text"), "text").unwrap();
    let one = here.join("one");
    fs::write(&one, "one").unwrap();

    let flags = [
        volume(&work, "/work"),
        volume(&quiet, "/ro:ro"),
        volume(&one, "/etc/one.conf:rw"),
        volume(&quiet, "/work/deep/in:ro"),
        ["--hide".into(), "*.key".into()],
        // A hole counts until it is known to be one.
        ["--volume-quota".into(), "16G".into()],
        [
            "--copy-in".into(),
            format!("{}:/etc/only-here", guests(&here).display()),
        ],
    ]
    .concat();
    let ended = python(&flags, CHECKS);
    assert_well(&ended);
    assert_eq!(ended.text(), "checked\n");

    let text = |name: &str| fs::read_to_string(work.join(name)).unwrap();
    let made = fs::metadata(work.join("new/below/file")).unwrap();
    assert_eq!(text("new/below/file"), "hello");
    assert_eq!(made.mode() & 0o7777, 0o750);
    assert_eq!((made.mtime(), made.mtime_nsec()), (1_000_000_000, 1));
    assert_eq!(made.nlink(), 2);
    assert_eq!(made.uid(), fs::metadata(&work).unwrap().uid());
    assert_eq!(
        fs::read_link(work.join("new/link")).unwrap(),
        Path::new("../large")
    );
    assert_eq!(text("saved"), "saved");
    assert_eq!(fs::read(work.join("large")).unwrap(), large);
    let mapped = fs::read(work.join("mapped")).unwrap();
    assert_eq!((mapped.len(), &mapped[4095..4098]), (3 * 4096, &b"abc"[..]));
    assert_eq!(mapped[0], 0);
    assert!(fs::metadata(work.join("sparse")).unwrap().blocks() < 1000);
    assert!(!work.join("gone").exists());
    assert_eq!(fs::read_to_string(&one).unwrap(), "one and more");
    assert_eq!(fs::read_dir(work.join(".git/hooks")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(quiet.join("text")).unwrap(), "text");
    assert_eq!(fs::read_dir(&quiet).unwrap().count(), 1);

    // For a user of the image's, by name, the same files are that one's.
    let [flag, at] = volume(&work, "/work");
    let flags = ["-u", "app", &flag, &at];
    let owner = shell(&flags, "touch /work/theirs; stat -c '%u %g' /work/large");
    assert_eq!(text_of(owner), "1000 1001\n");
    assert_eq!(fs::metadata(work.join("theirs")).unwrap().uid(), made.uid());
}

/// A file with what only the guest has at the place that a link names.
fn guests(folder: &Path) -> PathBuf {
    let file = folder.join("guests");
    fs::write(&file, "the guest's").unwrap();
    file
}

/// A guest whose folders are gone is of no use, and is told of by what has ended them.
#[test]
fn a_machine_ends_with_the_process_that_serves_its_folders() {
    let here = folder("volume-killed");
    let [flag, at] = volume(&here, "/work");
    let script = "echo runs; while :; do cat /work/none 2>/dev/null; done";
    let mut running = Program::start(&mut shell(&[&flag, &at], script));
    running.wait_for("runs", PATIENCE);
    let server = processes::below(running.id()).into_iter().find(|process| {
        let line = fs::read(format!("/proc/{}/cmdline", process.id));
        line.is_ok_and(|line| line == b"minivm\0folders\0")
    });
    let server = i32::try_from(server.expect("it is served").id).unwrap();
    kill_process(Pid::from_raw(server).unwrap(), Signal::KILL).unwrap();
    let ended = running.end(PATIENCE);
    let said = "minivm: the process that serves folders ended: it was killed";
    assert!(ended.stderr.starts_with(said), "{ended:?}");
    assert_eq!((ended.code, ended.stderr.lines().count()), (Some(125), 1));
}

/// The guest and the host take turns: each writes a number, and waits for the other's.
#[test]
fn both_sides_see_what_the_other_one_changes() {
    let here = folder("volume-turns");
    let script = "
        cd /work; n=0
        while [ $n -lt 5 ]; do
            n=$((n + 1)); echo $n > guest.tmp; mv guest.tmp guest; echo turn $n
            until [ \"$(cat host 2>/dev/null)\" = \"$n\" ]; do :; done
            until [ \"$(wc -c < grows)\" -eq $((n * 1000)) ]; do :; done
        done
        rm -r folder; echo over";
    let [flag, at] = volume(&here, "/work");
    let mut running = Program::start(&mut shell(&[&flag, &at], script));
    for n in 1..=5 {
        running.wait_for(&format!("turn {n}"), PATIENCE);
        assert_eq!(
            fs::read_to_string(here.join("guest")).unwrap(),
            format!("{n}\n")
        );
        fs::create_dir_all(here.join("folder/below")).unwrap();
        fs::write(here.join("grows"), noise(n * 1000)).unwrap();
        fs::write(here.join("host.tmp"), format!("{n}\n")).unwrap();
        fs::rename(here.join("host.tmp"), here.join("host")).unwrap();
    }
    let ended = running.end(PATIENCE);
    assert_well(&ended);
    assert!(ended.text().ends_with("turn 5\nover\n"), "{}", ended.text());
    assert!(!here.join("folder").exists());
}
