//! An image with a configuration of its own, run and built.

use std::fs;
use std::sync::OnceLock;

use minivm_tests::busybox;
use minivm_tests::program::{self, Program};
use rustix::process::Signal;

use crate::guest::{
    PATIENCE, assert_well, end_of, minivm, noise, our_kernel, run_image, scratch, small_root,
    text_of,
};

/// An image of the small root file system, with a configuration of its own.
fn saved() -> &'static str {
    static SAVED: OnceLock<String> = OnceLock::new();
    SAVED.get_or_init(|| {
        let config = r#"{
            "Entrypoint": ["/bin/sh", "-c", "echo $0 $1 $GREETING from $(pwd), user $(id -u)"],
            "Cmd": ["image", "says"],
            "Env": ["GREETING=hello", "PATH=/bin"],
            "WorkingDir": "/data/work",
            "User": "app",
            "StopSignal": "SIGUSR2"
        }"#;
        busybox::save_image(small_root(), config, &scratch("saved"))
    })
}

#[test]
fn an_images_own_command_runs_as_the_image_says_and_as_the_flags_say() {
    let text =
        |flags: &[&str], words: &[&str]| text_of(run_image(saved(), our_kernel(), flags, words));
    assert_eq!(
        text(&[], &[]),
        "image says hello from /data/work, user 1000\n"
    );
    assert_eq!(
        text(&[], &["you", "say"]),
        "you say hello from /data/work, user 1000\n"
    );
    let flags = ["-e", "GREETING=bye", "-w", "/", "-u", "0"];
    assert_eq!(text(&flags, &[]), "image says bye from /, user 0\n");
    assert_eq!(
        text(&["--entrypoint", ""], &["echo", "$GREETING"]),
        "$GREETING\n"
    );
}

#[test]
fn the_images_stop_signal_is_what_sigterm_becomes() {
    let script =
        "trap 'echo USR2; exit 3' USR2; echo ready; while :; do sleep 1000 & wait $!; done";
    let flags = ["--entrypoint", "/bin/sh"];
    let mut program = Program::start(&mut run_image(
        saved(),
        our_kernel(),
        &flags,
        &["-c", script],
    ));
    program.wait_for("ready\n", PATIENCE);
    program.signal(Signal::TERM);
    let ended = program.end(PATIENCE);
    assert_eq!(
        (ended.code, ended.text().as_str()),
        (Some(3), "ready\nUSR2\n")
    );
}

#[test]
fn a_built_initramfs_runs_the_images_command_on_the_console() {
    for compression in ["none", "gzip"] {
        let built = scratch("built.img");
        let mut build = minivm();
        build
            .args(["build", "--compression", compression, saved(), "-o"])
            .arg(&built);
        assert_well(&program::run(&mut build, PATIENCE));
        let mut boot = minivm();
        boot.args(["--accel", "kvm", "--kernel"])
            .arg(our_kernel())
            .arg("--initramfs")
            .arg(&built);
        let ended = end_of(boot);
        assert_well(&ended);
        let text = ended.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0], "image says hello from /data/work, user 1000",
            "{compression}"
        );
        // The kernel's own last line, an emergency message: `quiet` doesn't suppress it.
        assert!(
            lines.len() == 2 && lines[1].ends_with("reboot: Power down"),
            "{text}"
        );
    }
}

#[test]
fn an_image_that_does_not_fit_into_memory_is_told_and_not_run_in_part() {
    let root = scratch("too-large");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(minivm_tests::given::busybox(), root.join("bin/sh")).unwrap();
    fs::write(root.join("large"), noise(30 << 20)).unwrap();
    let built = scratch("too-large.cpio");
    let mut build = minivm();
    build
        .arg("build")
        .arg(format!("dir:{}", root.display()))
        .arg("-o")
        .arg(&built);
    assert_well(&end_of(build));
    let mut boot = minivm();
    boot.args(["--accel", "kvm", "--memory", "64M", "--kernel"])
        .arg(our_kernel());
    boot.arg("--initramfs").arg(&built);
    let text = end_of(boot).text();
    assert!(
        text.contains("does not fit into the guest's memory"),
        "{text}"
    );
}
