//! Blocks that are marked as runnable, run as a reader would.
//!
//! All that need the same are run one after the other, each by a shell and in a folder of its own; those that need KVM in one lab, where
//! this host's KVM runs no kernels. The commands are those of the page, but for the names of images, which no test can pull.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use minivm_tests::given;
use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{Ended, run};
use tempfile::TempDir;

use crate::all_blocks;
use crate::blocks::{Block, Needs, of_page};

/// Images of the pages, in place of which the root file system with Python and a shell is used.
const IMAGES: [&str; 4] = [
    "python:3-alpine",
    "python:3-slim",
    "debian:12-slim",
    "alpine:3",
];
/// What boots or resumes a machine, in a command.
const BOOTS: [&str; 5] = [
    "minivm run",
    "minivm timeline",
    "minivm --kernel",
    "minivm restore",
    "template create",
];
/// So many of them are some seconds' work in the lab.
const BOOTS_MAX: usize = 20;
/// The lab's memory: what it writes, a machine, and files of the image.
const LAB_MEMORY: &str = "--memory=2G";

/// Separates what blocks print.
const BLOCK: char = '\x1d';
/// Runs the blocks in `$PAGES`, a numbered folder and script each.
const RUN: &str = r#"
number=0
while [ -d "$PAGES/$number" ]; do
    (cd "$PAGES/$number" && exec sh "$PAGES/$number.sh" 2>&1 </dev/null)
    printf '\035'
    number=$((number + 1))
done"#;
/// Makes a home in which `cargo xtask setup` has been, and copies there what is read often: the host's files are slow in a lab.
const MAKE_HOME: &str = r#"
set -e
export HOME="$PAGES/home" PATH="$PAGES/bin:$PATH" MINIVM_ACCEL=kvm
unset XDG_CACHE_HOME
cache="$HOME/.cache/minivm"
mkdir -p "$cache/kernel/sandbox/current" "$cache/demo/current"
cp "$MINIVM" "$PAGES/bin/minivm"
cp "$KERNEL" "$cache/kernel/sandbox/current/vmlinux"
cp "$INITRAMFS" "$cache/demo/current/rootfs.cpio"
ln -s "$PYTHON_ROOT" "$cache/demo/current/rootfs"
set +e"#;
/// Variables that would change what commands do.
const VARIABLES: [&str; 6] = [
    "MINIVM_ACCEL",
    "MINIVM_CACHE_SIZE",
    "MINIVM_IMAGE",
    "MINIVM_KERNEL",
    "MINIVM_LAB_KERNEL",
    "MINIVM_LAB_PROGRAM",
];

/// Blocks to be run, in a folder of theirs.
struct Stage {
    folder: TempDir,
    blocks: Vec<Block>,
}

impl Stage {
    fn new(blocks: Vec<Block>, changed: impl Fn(&str) -> String) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        for (block, number) in blocks.iter().zip(0..) {
            let at = |name: String| folder.path().join(name);
            fs::create_dir(at(format!("{number}"))).unwrap();
            fs::write(at(format!("{number}.sh")), block.script(&changed)).unwrap();
        }
        Stage { folder, blocks }
    }

    /// Those of the pages with this mark.
    fn of(needs: Needs, changed: impl Fn(&str) -> String) -> Stage {
        let mut blocks = all_blocks();
        blocks.retain(|block| block.needs == Some(needs));
        assert!(!blocks.is_empty(), "{needs:?}");
        Stage::new(blocks, changed)
    }

    /// Lets `command` run the scripts.
    fn run(&self, command: &mut Command) -> Ended {
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        command.env("PAGES", self.folder.path());
        // A lab starts before the first output comes.
        run(command, PATIENCE * 2)
    }

    /// Lets a shell run them where `minivm` is this program.
    fn run_here(&self, minivm: &Path) -> Ended {
        let bin = self.folder.path().join("bin");
        symlink(minivm, bin.join("minivm")).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        self.run(Command::new("sh").args(["-c", RUN]).env("PATH", path))
    }

    /// What is not as the pages have it.
    fn faults(&self, ended: &Ended) -> Vec<String> {
        let text = ended.text();
        let mut outputs: Vec<&str> = text.split(BLOCK).collect();
        let rest = outputs.pop();
        assert_eq!((ended.code, rest), (Some(0), Some("")), "{ended:?}");
        assert_eq!(outputs.len(), self.blocks.len(), "{ended:?}");
        let all = self.blocks.iter().zip(outputs);
        all.flat_map(|(block, output)| block.faults(output))
            .collect()
    }

    fn assert_as_shown(&self, ended: &Ended) {
        let faults = self.faults(ended);
        assert!(faults.is_empty(), "{}\n{}", faults.join("\n"), ended.stderr);
    }
}

/// The optimized program, which has its worker beside it.
fn minivm() -> PathBuf {
    given::path("MINIVM_TEST_BINARY")
}

/// A command with the image that there is in place of those that no test can pull.
fn with_image(command: &str) -> String {
    let image = format!("dir:{}", given::python_root().display());
    let replace = |command: String, name: &&str| command.replace(*name, &image);
    IMAGES.iter().fold(command.to_owned(), replace)
}

#[test]
fn commands_that_need_no_sandbox_print_what_is_shown() {
    let stage = Stage::of(Needs::Host, str::to_owned);
    stage.assert_as_shown(&stage.run_here(Path::new(env!("CARGO_BIN_EXE_minivm"))));
}

#[test]
#[ignore = "needs the sandboxes: cargo xtask test"]
fn sandboxes_of_the_host_print_what_is_shown() {
    let stage = Stage::of(Needs::Sandboxes, with_image);
    stage.assert_as_shown(&stage.run_here(&minivm()));
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn machines_print_what_is_shown() {
    let stage = Stage::of(Needs::Kvm, with_image);
    let script = [MAKE_HOME, RUN].concat();
    let mut command = match minivm_machine::probe() {
        Ok(()) => Command::new("sh"),
        Err(_) => {
            let mut lab = Command::new(minivm());
            lab.args(["lab", LAB_MEMORY, "--", "sh"]);
            lab
        }
    };
    command
        .args(["-c", &script])
        .env("MINIVM", minivm())
        .env("KERNEL", given::path("MINIVM_TEST_KERNEL"))
        .env("INITRAMFS", given::path("MINIVM_TEST_INITRAMFS"))
        .env("PYTHON_ROOT", given::python_root())
        .env("MINIVM_COLD", "1");
    stage.assert_as_shown(&stage.run(&mut command));
}

#[test]
fn few_machines_are_booted() {
    let blocks = all_blocks();
    let steps = blocks
        .iter()
        .filter(|block| block.needs == Some(Needs::Kvm))
        .flat_map(|block| &block.steps);
    let boots = |command: &str| -> usize {
        let count = BOOTS.iter().map(|boot| command.matches(boot).count());
        count.sum()
    };
    let boots: usize = steps.map(|step| boots(&step.command)).sum();
    assert!((1..=BOOTS_MAX).contains(&boots), "{boots}");
}

#[test]
fn a_page_that_shows_something_else_is_found_out() {
    let page = "<!-- runnable: host -->
```console
$ echo 4
5
$ cat missing
$ x=in; echo $x this shell
in this shell
```
<!-- runnable: host -->
```console
$ exit 3
$ echo never
```
<!-- runnable: host -->
```console
$ sh -c 'echo out; echo error >&2; exit 7'
out
error
$ echo $?
7
$ echo ${x-not the same shell}
not the same shell
```
";
    let stage = Stage::new(of_page("page", page).unwrap(), str::to_owned);
    let ended = stage.run_here(Path::new("/bin/false"));
    let faults = stage.faults(&ended);
    let begin = |fault: &String| fault.split("` ").next().unwrap().to_owned();
    assert_eq!(
        faults.iter().map(begin).collect::<Vec<_>>(),
        [
            "page:3: `echo 4",
            "page:5: `cat missing",
            "page:11: `exit 3"
        ],
        "{faults:?}"
    );
}
