//! Real programs in a folder that this host's own kernel has mounted: the messages are those that Linux sends.
//!
//! The product mounts nothing on the host.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;

use minivm_guest::channel::folders::Kind;
use minivm_machine::folders::{Access, Folder, REQUEST_MAX, Running, Server};
use rustix::mount::{MountFlags, mount};
use tempfile::{TempDir, tempdir};

use crate::{process, wire};

/// Threads that answer.
const THREADS: usize = 3;

fn serve(device: &OwnedFd, server: &Server) {
    let mut device = File::from(device.try_clone().unwrap());
    let mut request = vec![0; REQUEST_MAX];
    let mut reply = Vec::new();
    // It ends when the mount does.
    while let Ok(len) = device.read(&mut request) {
        if let Some(notice) = server.answer(0, &request[..len], &mut reply) {
            // ENOENT: the kernel has forgotten the file.
            let _ = device.write(&notice);
        }
        if !reply.is_empty() {
            // ENOENT: the request was given up meanwhile.
            let _ = device.write(&reply);
        }
    }
}

/// Mounts a folder, in the mount namespace that this process has of its own. Returns the device.
fn mount_device(at: &Path) -> OwnedFd {
    let device: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .unwrap()
        .into();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other\0",
        device.as_raw_fd()
    );
    let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
    mount(
        "minivm",
        at,
        "fuse",
        MountFlags::NOSUID | MountFlags::NODEV,
        options,
    )
    .unwrap();
    device
}

/// Mounts a folder that threads of this process serve.
fn mounted(source: &Path, at: &Path) -> Arc<Server> {
    let device = mount_device(at);
    let server = Arc::new(Server::new(&[Folder::new(source, Access::ReadWrite)]).unwrap());
    for _ in 0..THREADS {
        let (device, server) = (device.try_clone().unwrap(), Arc::clone(&server));
        thread::spawn(move || serve(&device, &server));
    }
    server
}

/// Mounts a folder that a process of its own serves: passes the messages on, as a machine does.
fn mounted_apart(source: &TempDir, at: &Path) -> Running {
    let device = mount_device(at);
    let (running, mut stream) = process::served(source);
    let (mut requests, mut replies) = (File::from(device.try_clone().unwrap()), File::from(device));
    let mut from = stream.try_clone().unwrap();
    // Both end when the process does.
    thread::spawn(move || {
        let mut request = vec![0; REQUEST_MAX];
        while let Ok(len) = requests.read(&mut request) {
            let message = wire::framed(0, Kind::Fuse, &request[..len]);
            if stream.write_all(&message).is_err() {
                return;
            }
        }
    });
    let (noticed, notices) = mpsc::channel::<Vec<u8>>();
    let mut late = replies.try_clone().unwrap();
    thread::spawn(move || {
        for notice in notices {
            // ENOENT: the kernel has forgotten the file.
            let _ = late.write(&notice);
        }
    });
    thread::spawn(move || {
        while let Ok((header, reply)) = wire::try_receive(&mut from) {
            if header.kind == Kind::Notice {
                noticed.send(reply).unwrap();
                continue;
            }
            // ENOENT: the request was given up meanwhile.
            let _ = replies.write(&reply);
        }
    });
    running
}

/// Runs a test anew in a mount namespace of its own. Returns `None` in the outer process, which is done then.
fn inside(name: &str) -> Option<()> {
    if std::env::var_os("MINIVM_TEST_MOUNTED").is_some() {
        return Some(());
    }
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--include-ignored", "--nocapture"])
        .env("MINIVM_TEST_MOUNTED", "1")
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    None
}

#[track_caller]
fn run(folder: &Path, script: &str) {
    let output = Command::new("sh")
        .args(["-euc", script])
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_AUTHOR_NAME", "a")
        .env("GIT_AUTHOR_EMAIL", "a@example.org")
        .env("GIT_COMMITTER_NAME", "a")
        .env("GIT_COMMITTER_EMAIL", "a@example.org")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

const GIT: &str = r#"
git init -q old 2>/dev/null
cd old
mkdir src; i=0
while [ $i -lt 300 ]; do echo "line $i" > src/file$i; i=$((i+1)); done
printf '#!/bin/sh\necho hi\n' > run; chmod +x run; ln -s run link
git add -A; git commit -qm one
test -z "$(git status --porcelain)"
git checkout -q -b other; git mv src/file1 src/moved; echo x >> src/file2; git commit -qam two
git checkout -q -; test -e src/file1; git merge -q other; test -e src/moved
git reset -q --hard HEAD~1; test -z "$(git status --porcelain)"; test -x run; ./run
cd ..; git clone -q old new; test -z "$(git -C new status --porcelain)"
git -C new gc -q; git -C new fsck --strict
"#;

const FILES: &str = r#"
mkdir a; cd a
python3 - <<'END'
import os, mmap, sqlite3, fcntl, tempfile, errno
db = sqlite3.connect("data.db"); db.execute("pragma journal_mode=wal"); db.execute("create table t (x)")
for n in range(50):
    with db: db.execute("insert into t values (?)", (n,))
assert db.execute("select count(*), sum(x) from t").fetchone() == (50, 1225)
other = sqlite3.connect("data.db"); assert other.execute("pragma integrity_check").fetchone() == ("ok",); other.close(); db.close()
f = open("map", "w+b"); f.truncate(1 << 20); m = mmap.mmap(f.fileno(), 0); m[5:10] = b"hello"; m.flush(); m.close()
assert open("map", "rb").read(10)[5:] == b"hello"
f = open("gone", "w+b"); f.write(b"x" * 5000); f.flush(); os.unlink("gone"); assert os.fstat(f.fileno()).st_size == 5000
os.fchmod(f.fileno(), 0o600); os.ftruncate(f.fileno(), 10); f.seek(0); assert len(f.read()) == 10
assert open("/proc/self/fd/%d" % f.fileno(), "rb").read() == b"x" * 10
open("doc", "w").write("old"); open("doc.tmp", "w").write("new"); os.replace("doc.tmp", "doc"); assert open("doc").read() == "new"
a = open("log", "ab", 0); b = open("log", "ab", 0); a.write(b"1"); b.write(b"2"); a.write(b"3"); assert open("log").read() == "123"
g = open("lock", "w"); fcntl.flock(g, fcntl.LOCK_EX); fcntl.lockf(open("lock2", "w"), fcntl.LOCK_EX)
h = open("big", "w+b"); h.seek(3 << 30); h.write(b"end"); h.flush(); assert os.lseek(h.fileno(), 0, os.SEEK_DATA) > 1 << 30; h.close(); os.unlink("big")
for name in (b"a\nb", b"\xff\xfe", b"x" * 255): open(name, "w").close()
assert len(os.listdir(b".")) == 9, os.listdir(b".")
for bad in (lambda: os.mkfifo("fifo"), lambda: os.setxattr("doc", "user.x", b"y")):
    try: bad()
    except OSError as e: assert e.errno in (errno.EPERM, errno.EOPNOTSUPP), e
    else: raise SystemExit("it was done")
os.utime("doc", ns=(10**18, 10**18 + 7)); assert os.stat("doc").st_mtime_ns == 10**18 + 7
try: os.link("doc", "../other"); os.unlink("../other")
except OSError as e: raise SystemExit(e)
fd = os.open("at", os.O_CREAT | os.O_RDWR); os.posix_fallocate(fd, 0, 10000); assert os.fstat(fd).st_size == 10000
END
cd ..; tar cf all.tar a; mkdir b; tar xf all.tar -C b; diff -r --no-dereference a b/a; rm -r a b all.tar
mkdir c; cd c; printf 'int main(){return 7;}' > x.c; printf 'x: x.c\n\tgcc -o x x.c\n' > Makefile; make -s x; set +e; ./x; test $? = 7; set -e
make -q x; cd ..; cp -a c d; diff -r c d; rm -rf c d; mkdir -p p/q/r/s; mv p/q p/z; test -d p/z/r/s; rm -r p; test -z "$(ls -A)"
"#;

const REFUSED: &str = r#"
cd old; ! git config user.name x 2>/dev/null; ! git remote add o /x 2>/dev/null; ! sh -c 'echo x > .git/hooks/pre-commit' 2>/dev/null
! mv .git x 2>/dev/null; ! touch .envrc 2>/dev/null; ! mkdir .vscode 2>/dev/null; ! chmod 777 .git/config 2>/dev/null
test -d .git/hooks; echo more >> run; git commit -qam three; git stash list; test -z "$(git status --porcelain)"
"#;

#[test]
#[ignore = "mounts a file system"]
fn real_programs_work() {
    if inside("mounted::real_programs_work").is_none() {
        return;
    }
    let (source, at) = (tempdir().unwrap(), tempdir().unwrap());
    let server = mounted(source.path(), at.path());
    run(at.path(), FILES);
    run(at.path(), GIT);
    assert_eq!(
        server.repositories(0),
        ["old", "new"].map(std::path::PathBuf::from)
    );
    run(
        source.path(),
        "git -C old fsck --strict && test -x old/run && rm -r new",
    );
    // Another guest, for which the repository was there at the start.
    let again = tempdir().unwrap();
    mounted(source.path(), again.path());
    run(again.path(), REFUSED);
    run(
        source.path(),
        "cd old && git fsck --strict && test -z \"$(git status --porcelain)\"",
    );
}

#[test]
#[ignore = "mounts a file system"]
fn real_programs_work_with_a_process_that_serves() {
    if inside("mounted::real_programs_work_with_a_process_that_serves").is_none() {
        return;
    }
    let (source, at) = (tempdir().unwrap(), tempdir().unwrap());
    let running = mounted_apart(&source, at.path());
    run(at.path(), FILES);
    run(at.path(), GIT);
    let report = running.end();
    assert_eq!(report.ended, None);
    assert_eq!(report.repositories, [["old", "new"].map(PathBuf::from)]);
    run(source.path(), "git -C old fsck --strict && test -x old/run");
}

#[test]
#[ignore = "mounts a file system"]
fn both_sides_see_one_tree() {
    if inside("mounted::both_sides_see_one_tree").is_none() {
        return;
    }
    let (source, at) = (tempdir().unwrap(), tempdir().unwrap());
    mounted(source.path(), at.path());
    let (host, guest) = (source.path().join("file"), at.path().join("file"));
    for round in 0..minivm_tests::stress::count(300, 10_000) {
        let text = format!("round {round}");
        // In place, and by a rename.
        fs::write(&host, &text).unwrap();
        assert_eq!(fs::read_to_string(&guest).unwrap(), text);
        fs::write(source.path().join("new"), format!("{text} again")).unwrap();
        fs::rename(source.path().join("new"), &host).unwrap();
        assert_eq!(fs::read_to_string(&guest).unwrap(), format!("{text} again"));
        fs::write(&guest, "from the guest").unwrap();
        assert_eq!(fs::read_to_string(&host).unwrap(), "from the guest");
        assert_eq!(fs::metadata(&guest).unwrap().len(), 14);
        // Longer than what the guest's kernel knows, and has just been told.
        let long = text.repeat(1000);
        fs::write(&host, &long).unwrap();
        let mut file = File::open(&guest).unwrap();
        assert_eq!(file.metadata().unwrap().len(), long.len() as u64);
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert!(read == long, "{} of {} bytes", read.len(), long.len());
    }
}
