//! The process that pulls and reads images: what it keeps from the one that the user started, and what is left when it ends early.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use minivm_tests::patience::wait_until;
use minivm_tests::processes::{self, Process};
use minivm_tests::program::{Program, run};
use rustix::process::{Pid, Signal, kill_process};

use crate::bad::{ERROR, assert_refused};
use crate::made::images;
use crate::registry::{Scripted, layer};
use crate::tools::{Minivm, PATIENCE, files, folder, tool};

/// A pull that waits for the second half of its layer.
struct Pull {
    registry: Scripted,
    minivm: Minivm,
    program: Program,
    fetcher: Process,
}

impl Pull {
    fn start() -> Self {
        let (registry, minivm) = (Scripted::start(), Minivm::new());
        let layer = layer();
        let digest = registry.has_image(&layer, layer.len());
        registry.stalls_at(&digest);
        let output = minivm.cache.path().join("built");
        let program = Program::start(&mut minivm.building(&registry.image(), &[], &output));
        wait_until("the layer isn't asked for", || registry.is_stalled());
        let children = processes::below(program.id());
        let is_fetcher = |child: &&Process| {
            let line = fs::read(format!("/proc/{}/cmdline", child.id)).unwrap();
            line == b"minivm\0fetch\0"
        };
        let fetcher = children.iter().find(is_fetcher).copied();
        Pull {
            registry,
            minivm,
            program,
            fetcher: fetcher.expect("a fetcher"),
        }
    }

    /// Checks that the cache is whole, and the image can be built.
    fn assert_sound_again(self, what: &str) {
        self.minivm.assert_sound(what);
        let layer = layer();
        self.registry.has_image(&layer, layer.len());
        let built = self.minivm.build(&self.registry.image());
        assert!(built.len() > 3_000_000, "{what}");
        self.minivm.assert_sound(what);
    }
}

/// What a process has open, as `/proc` names it.
fn open_files(process: u32) -> Vec<String> {
    let all = files(Path::new(&format!("/proc/{process}/fd")));
    let target = |path: PathBuf| fs::read_link(path).ok();
    let all = all.into_iter().filter_map(|(_, path)| target(path));
    all.map(|path| path.display().to_string()).collect()
}

/// Whether one of these is a TCP socket.
fn has_tcp(files: &[String]) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let inodes = table.lines().skip(1);
    let inodes = inodes.filter_map(|line| line.split_whitespace().nth(9));
    let names: Vec<_> = inodes.map(|inode| format!("socket:[{inode}]")).collect();
    files.iter().any(|file| names.contains(file))
}

fn field(process: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim().to_owned()
}

#[test]
fn the_process_that_the_user_started_has_no_connection_and_no_layer() {
    let pull = Pull::start();
    let store = pull.minivm.cache.path().join("minivm/images");
    let store = store.to_str().unwrap();
    let (broker, fetcher) = (pull.program.id(), pull.fetcher.id);
    let (ours, its) = (open_files(broker), open_files(fetcher));
    let has_layer = |files: &[String]| files.iter().any(|file| file.starts_with(store));
    assert!(has_tcp(&its) && has_layer(&its), "{its:?}");
    assert!(!has_tcp(&ours) && !has_layer(&ours), "{ours:?}");
    let mapped = fs::read_to_string(format!("/proc/{broker}/maps")).unwrap();
    assert!(!mapped.contains(store), "{mapped}");
    for (name, value) in [
        ("Seccomp:", "2"),
        ("NoNewPrivs:", "1"),
        ("CapEff:", "0000000000000004"),
        ("CapPrm:", "0000000000000004"),
    ] {
        assert_eq!(field(fetcher, name), value, "{name}");
    }
    let environment = fs::read(format!("/proc/{fetcher}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(!environment.contains("MINIVM_"), "{environment}");
}

#[test]
fn a_fetcher_that_is_killed_leaves_one_line_and_a_whole_cache() {
    let pull = Pull::start();
    let id = Pid::from_raw(pull.fetcher.id.try_into().unwrap()).unwrap();
    kill_process(id, Signal::KILL).unwrap();
    let Pull {
        registry,
        minivm,
        program,
        fetcher,
    } = pull;
    let ended = program.end(PATIENCE);
    let image = registry.image();
    assert_refused("killed", &ended, &[&image, "ended early", "it was killed"]);
    assert!(!minivm.cache.path().join("built").exists());
    let again = Pull {
        program: Program::start(&mut Command::new("true")),
        registry,
        minivm,
        fetcher,
    };
    again.assert_sound_again("killed");
}

#[test]
fn a_fetcher_ends_with_the_process_that_started_it() {
    for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
        let pull = Pull::start();
        pull.program.signal(signal);
        wait_until("the fetcher goes on", || !pull.fetcher.still_runs());
        pull.assert_sound_again(&format!("{signal:?}"));
    }
}

#[test]
fn a_cached_image_is_run_without_a_look_into_it() {
    let (registry, minivm) = (Scripted::start(), Minivm::new());
    let layer = layer();
    registry.has_image(&layer, layer.len());
    // Without a kernel it ends as soon as the archive is there.
    let runs = |parts: &[&str]| {
        let mut command = minivm.command();
        command.args(["run", "--accel", "kvm", "--kernel", "/nowhere/vmlinux"]);
        command.arg(registry.image());
        assert_refused("run", &run(&mut command, PATIENCE), parts);
    };
    runs(&["/nowhere/vmlinux"]);
    registry.forgets_all();
    let store = minivm.cache.path().join("minivm/images");
    for (_, blob) in files(&store.join("blobs/sha256")) {
        let len = fs::metadata(&blob).unwrap().len();
        fs::write(&blob, vec![b'!'; len.try_into().unwrap()]).unwrap();
    }
    runs(&["/nowhere/vmlinux"]);
    // What isn't known is looked into, and found out.
    fs::remove_dir_all(store.join("known")).unwrap();
    runs(&["HTTP status 404"]);
}

#[test]
fn a_layout_that_leads_out_of_its_folder_is_not_followed() {
    let (minivm, output) = (Minivm::new(), folder());
    let folder = folder();
    let to = folder.path().join("layout");
    let image = format!("oci:{}:random", to.display());
    let copy = ["skopeo", "--insecure-policy", "copy", "--quiet"];
    tool(&[&copy[..], &[&images().oci("random"), &image]].concat());
    let plain = minivm.build(&image);
    let blobs = to.join("blobs/sha256");
    let (name, blob) = files(&blobs).remove(0);
    // A link within the folder is as good as the file.
    fs::rename(&blob, to.join("moved")).unwrap();
    symlink("../../moved", &blob).unwrap();
    assert!(minivm.build(&image) == plain);
    fs::rename(to.join("moved"), folder.path().join("outside")).unwrap();
    fs::remove_file(&blob).unwrap();
    symlink("../../../outside", &blob).unwrap();
    let mut command = minivm.building(&image, &[], &output.path().join("built"));
    let ended = run(&mut command, PATIENCE);
    assert_eq!(ended.code, Some(ERROR));
    assert_refused("outside", &ended, &[&name, "Permission denied"]);
}
