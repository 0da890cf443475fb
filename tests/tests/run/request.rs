//! What a user asks for beside the command, as container users know it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use minivm_tests::busybox;

use crate::guest::{end_of, our_kernel, run, run_image, scratch, shell, shell_text, text_of};

#[test]
fn the_environment_is_what_was_asked_for_and_nothing_of_the_hosts() {
    let file = scratch("env-file");
    fs::write(&file, "# comment\nFROM_FILE=a b\nTWICE=file\nPASSED_ON\n").unwrap();
    let file = file.to_str().unwrap();
    let flags = [
        "-e",
        "PLAIN=1=2",
        "--env-file",
        file,
        "-e",
        "TWICE=flag",
        "-e",
        "NOT_THERE",
    ];
    let mut command = run(&flags, &["env"]);
    command
        .env("PASSED_ON", "hosts")
        .env("SECRET", "hosts")
        .env("MINIVM_SECRET", "hosts");
    let text = text_of(command);
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "FROM_FILE=a b",
            "HOME=/root",
            "HOSTNAME=minivm",
            "PASSED_ON=hosts",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PLAIN=1=2",
            "TWICE=flag",
        ]
    );
}

#[test]
fn folder_user_and_name_are_the_users() {
    let script = "pwd; stat -c %a .; id -u; id -g; id -G; echo $HOME $HOSTNAME; hostname; cat /etc/hostname; \
                  grep -c box /etc/hosts; touch /data/x || echo not mine";
    let flags = ["-w", "/srv/new", "-u", "app", "--hostname", "box"];
    let ended = end_of(shell(&flags, script));
    assert_eq!(
        ended.text(),
        "/srv/new\n755\n1000\n1001\n1001 4 44\n/home/app box\nbox\nbox\n1\nnot mine\n"
    );
    for (user, ids) in [("1000:log", "1000 4 4\n"), ("4711", "4711 0 0\n")] {
        assert_eq!(
            shell_text(&["-u", user], "echo $(id -u) $(id -g) $(id -G)"),
            ids,
            "{user}"
        );
    }
    let ended = end_of(shell(&["-u", "nobody"], "true"));
    assert_eq!(ended.code, Some(125));
    let said = "minivm: the guest refused to run the command: the image has no user nobody\n";
    assert_eq!(ended.stderr, said);
}

#[test]
fn an_entrypoint_takes_the_command_as_its_arguments() {
    assert_eq!(
        text_of(run(&["--entrypoint", "/bin/echo"], &["a", "-b", "c d"])),
        "a -b c d\n"
    );
}

#[test]
fn limits_are_set() {
    let flags = [
        "--ulimit",
        "nofile=77",
        "--ulimit",
        "core=0:1024",
        "--ulimit",
        "nproc=100:200",
    ];
    let text = shell_text(
        &flags,
        "ulimit -n; ulimit -Hn; ulimit -c; grep processes /proc/self/limits",
    );
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[..3], [["77"], ["77"], ["0"]]);
    assert_eq!(lines[3][2..4], ["100", "200"], "{text}");
}

#[test]
fn a_read_only_root_takes_no_writes_and_the_rest_does() {
    let script = "touch /new || echo root; touch /bin/busybox || echo file; mkdir /data/d || echo folder; \
                  mount -o remount,rw / || echo kept; touch /tmp/t /run/r /dev/shm/s && echo rest; \
                  echo x > /proc/self/comm && echo proc";
    let ended = end_of(shell(&["--read-only", "-u", "app"], script));
    assert_eq!(
        ended.text().replace("rest\n", ""),
        "root\nfile\nfolder\nkept\nproc\n",
        "{}",
        ended.stderr
    );
    let ended = end_of(shell(
        &["--read-only"],
        "touch /new || echo root; touch /tmp/t /run/r /dev/shm/s && echo rest",
    ));
    assert_eq!(ended.text(), "root\nrest\n", "{}", ended.stderr);
    let ended = end_of(shell(&[], "touch /new /bin/busybox && echo writable"));
    assert_eq!(ended.text(), "writable\n", "{}", ended.stderr);
}

#[test]
fn only_the_privileged_can_gain_privileges() {
    let script = "grep NoNewPrivs /proc/self/status";
    assert_eq!(shell_text(&[], script), "NoNewPrivs:\t1\n");
    assert_eq!(shell_text(&["--privileged"], script), "NoNewPrivs:\t0\n");
}

#[test]
fn users_are_found_in_text_of_any_encoding() {
    let root = scratch("latin-root");
    let _ = fs::remove_dir_all(&root);
    busybox::make_root(&root, "sh id echo");
    let passwd = root.join("etc/passwd");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(&passwd, b"bob:x:1000:1001:Jos\xe9:/home/bob:/bin/sh\n").unwrap();
    fs::write(
        root.join("etc/group"),
        b"\xe9quipe:x:7:\nextra:x:2000:bob\n",
    )
    .unwrap();
    let image = format!("dir:{}", root.display());
    let ids = ["sh", "-c", "echo $(id -u) $(id -g) $(id -G) $HOME"];
    let run_as = |user| run_image(&image, our_kernel(), &["-u", user], &ids);
    assert_eq!(text_of(run_as("1000")), "1000 1001 1001 2000 /home/bob\n");
    assert_eq!(text_of(run_as("bob:extra")), "1000 2000 2000 /home/bob\n");
    fs::remove_file(&passwd).unwrap();
    fs::create_dir(&passwd).unwrap();
    let ended = end_of(run_as("1000"));
    assert_eq!(ended.code, Some(125), "{}", ended.stderr);
    assert_eq!(
        ended.stderr,
        "minivm: the guest refused to run the command: cannot read /etc/passwd: it is not a file\n"
    );
}

#[test]
fn memory_is_mounted_as_asked_for() {
    let flags = [
        "--shm-size",
        "96MiB",
        "--tmpfs",
        "/new/scratch:exec,size=1.5M,mode=750",
        "--tmpfs",
        "/data",
        "--read-only",
        "-m",
        "512M",
    ];
    let script = "grep -e /dev/shm -e /new/scratch -e ' /data ' /proc/mounts | cut -d' ' -f2-4; stat -c %a /new/scratch; \
                  echo x > /data/x && echo wrote; dd if=/dev/zero of=/new/scratch/x bs=1M count=2 2>/dev/null || echo full";
    assert_eq!(
        shell_text(&flags, script),
        "/dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=98304k\n\
         /new/scratch tmpfs rw,nosuid,nodev,relatime,size=1536k,mode=750\n\
         /data tmpfs rw,nosuid,nodev,noexec,relatime\n750\nwrote\nfull\n"
    );
    let size = "grep /dev/shm /proc/mounts | cut -d' ' -f4 | cut -d, -f6";
    assert_eq!(shell_text(&["-m", "512M"], size), "size=65536k\n");
}

#[test]
fn a_value_need_not_be_text() {
    let file = scratch("odd-env-file");
    fs::write(&file, b"\xef\xbb\xbf  FROM_FILE=\xe9\r\n").unwrap();
    let mut command = run(
        &["--env-file", file.to_str().unwrap(), "-e", "PASSED_ON"],
        &[],
    );
    command.env("PASSED_ON", OsStr::from_bytes(b"\xff"));
    command.args(["sh", "-c", "printf '%s %s' $FROM_FILE $PASSED_ON"]);
    assert_eq!(end_of(command).stdout, b"\xe9 \xff");
}

#[test]
fn impossible_requests_are_refused_before_a_machine_starts() {
    let file = scratch("wrong-env-file");
    fs::write(&file, "A=1\nSP ACE=1\n").unwrap();
    let wrong = file.to_str().unwrap();
    let told = format!("minivm: {wrong}, line 2: the name \"SP ACE\" has blanks in it: ");
    for (flags, said) in [
        (
            &["-w", "relative"][..],
            "minivm: the working folder must be an absolute path\n",
        ),
        (
            &["--hostname", "a/b"],
            "minivm: \"a/b\" is not a valid host name: it has 1 to 64 characters\n",
        ),
        (
            &["--memory", "1M"],
            "minivm: 1 MiB of memory are too little: ",
        ),
        (
            &["-t"],
            "minivm: -t needs a terminal, and stdin or stdout is not one: leave it out\n",
        ),
        (
            &["--env-file", "/nowhere"],
            "minivm: cannot read /nowhere: No such file or directory",
        ),
        (&["--copy-in", "/nowhere:/x"], "minivm: cannot "),
        (
            &["-e", "=x"],
            "minivm: the environment variable \"=x\" has no name: ",
        ),
        (&["--env-file", wrong], &told),
    ] {
        let ended = end_of(shell(flags, "true"));
        assert_eq!(ended.code, Some(125), "{flags:?}: {}", ended.stderr);
        assert!(
            ended.stderr.starts_with(said),
            "{flags:?}: {}",
            ended.stderr
        );
    }
    let ended = end_of(run(&[], &[]));
    assert_eq!(ended.code, Some(125));
    assert!(
        ended
            .stderr
            .contains("the image names no command of its own"),
        "{}",
        ended.stderr
    );
}
