//! How the tests run the command: the kernel, the images, and a cache of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub(crate) use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{self, Ended, Program};
use minivm_tests::{busybox, given};

/// What the images' shell scripts call.
const APPLETS: &str = "awk cat cut date dd echo env false grep head hexdump hostname id ls mkdir mknod mount nc printf ps \
                       readlink seq sh sha256sum sleep sort stat stty su tail tee test timeout touch true truncate tty uname wc \
                       yes";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:An app:/home/app:/bin/sh\n";
const GROUP: &str = "root:x:0:\napp:x:1001:\nlog:x:4:app\nvideo:x:44:app\n";

/// A file of the tests' own.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("run");
    fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

pub(crate) fn our_kernel() -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| given::kernel(&scratch("")))
}

pub(crate) fn debians_kernel() -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| given::copy("MINIVM_TEST_DEBIAN_CLOUD", &scratch("")))
}

/// A root file system of busybox, a few users, and files that can't be executed.
pub(crate) fn small_root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = scratch("root");
        // What another run left would be added to.
        let _ = fs::remove_dir_all(&root);
        busybox::make_root(&root, APPLETS);
        for folder in ["root", "home/app", "data"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for (name, text, mode) in [
            ("etc/passwd", PASSWD, 0o644),
            ("etc/group", GROUP, 0o644),
            ("bin/not-executable", "#!/bin/sh\n", 0o644),
            ("bin/no-format", "just some text\n", 0o755),
            ("bin/no-interpreter", "#!/bin/nobody\n", 0o755),
        ] {
            let path = root.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        root
    })
}

/// `minivm` with a cache that is no user's.
pub(crate) fn minivm() -> Command {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    let mut command =
        Command::new(COPY.get_or_init(|| given::copy("MINIVM_TEST_BINARY", &scratch(""))));
    command.env("XDG_CACHE_HOME", scratch("cache"));
    // Every machine boots, and nothing is left running.
    command.env("MINIVM_COLD", "1");
    command
}

/// `minivm run` of a command in an image.
pub(crate) fn run_image(image: &str, kernel: &Path, flags: &[&str], words: &[&str]) -> Command {
    let mut command = minivm();
    command.args(["run", "--accel", "kvm", "--kernel"]);
    command.arg(kernel).args(flags).arg(image).arg("--");
    command.args(words);
    command
}

/// `minivm run` of a command in the small image.
pub(crate) fn run(flags: &[&str], words: &[&str]) -> Command {
    let image = format!("dir:{}", small_root().display());
    run_image(&image, our_kernel(), flags, words)
}

/// The same of a shell script.
pub(crate) fn shell(flags: &[&str], script: &str) -> Command {
    run(flags, &["sh", "-c", script])
}

/// The command's end, with no input.
pub(crate) fn end_of(mut command: Command) -> Ended {
    program::run(&mut command, PATIENCE)
}

/// The end of a command that gets `input`, all of it at once, and that may not want it.
pub(crate) fn fed(mut command: Command, input: &[u8]) -> Ended {
    let mut program = Program::start(&mut command);
    let mut stdin = program.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A command may end before it has read all of it.
            let _ = std::io::Write::write_all(&mut stdin, input);
            drop(stdin);
        });
        program.end(PATIENCE)
    })
}

/// What a command writes that ends well and says nothing on stderr.
pub(crate) fn text_of(command: Command) -> String {
    let ended = end_of(command);
    assert_well(&ended);
    ended.text()
}

/// The same of a shell script.
pub(crate) fn shell_text(flags: &[&str], script: &str) -> String {
    text_of(shell(flags, script))
}

pub(crate) fn assert_well(ended: &Ended) {
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{}",
        ended.text()
    );
}

/// Bytes of every value in no simple order (a linear congruential generator).
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}
