//! How a command ends, and what minivm says of it.

use std::time::Duration;

use minivm_tests::patience::with_limits_from;

use crate::guest::{assert_well, end_of, run, shell, shell_text};

#[test]
fn the_exit_code_is_the_commands() {
    for code in [1, 42, 255] {
        let ended = end_of(shell(&[], &format!("exit {code}")));
        assert_eq!(
            (ended.code, ended.stderr.as_str()),
            (Some(code), ""),
            "{code}"
        );
    }
}

#[test]
fn a_signal_is_128_and_its_number() {
    for (signal, code) in [("KILL", 137), ("SEGV", 139), ("TERM", 143)] {
        let ended = end_of(shell(&[], &format!("kill -{signal} $$; exit 1")));
        assert_eq!(
            (ended.code, ended.stderr.as_str()),
            (Some(code), ""),
            "{signal}"
        );
    }
}

#[test]
fn what_is_not_there_is_127_and_what_is_no_program_126() {
    for (program, code, said) in [
        ("nobody", 127, "minivm: no such command: nobody: "),
        (
            "/bin/no-interpreter",
            127,
            "minivm: no such command: /bin/no-interpreter: ",
        ),
        (
            "/bin/not-executable",
            126,
            "minivm: cannot execute /bin/not-executable: Permission denied",
        ),
        (
            "/bin/no-format",
            126,
            "minivm: cannot execute /bin/no-format: Exec format error",
        ),
        ("/etc", 126, "minivm: cannot execute /etc: "),
    ] {
        let ended = end_of(run(&[], &[program]));
        assert_eq!(ended.code, Some(code), "{program}: {}", ended.stderr);
        assert!(ended.stderr.starts_with(said), "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    }
}

#[test]
fn the_time_limit_ends_a_command_whatever_it_ignores() {
    for script in [
        "echo up; sleep 1000",
        "trap '' TERM INT; echo up; while :; do :; done",
    ] {
        let ended = end_of(shell(&["--timeout", "1s"], script));
        assert_eq!(ended.code, Some(124), "{}", ended.stderr);
        assert_eq!(ended.stderr, "minivm: time limit of 1s reached\n");
        // On a busy machine it may have had no time to say so.
        assert!("up\n".starts_with(&ended.text()), "{}", ended.text());
    }
}

#[test]
fn the_time_limit_ends_a_flood_of_output() {
    with_limits_from(Duration::from_secs(1), |limit| {
        let limit = format!("{}s", limit.as_secs());
        let ended = end_of(run(&["--timeout", &limit], &["yes"]));
        assert_eq!(ended.code, Some(124), "{}", ended.stderr);
        ended.stdout.starts_with(b"y\n").then_some(())
    });
}

#[test]
fn a_command_in_time_is_left_alone() {
    assert_eq!(shell_text(&["--timeout", "100s"], "echo done"), "done\n");
}

#[test]
fn what_is_left_running_does_not_hold_the_end_up() {
    // Some that hold the output open, ignore signals, have lost their parents, are busy.
    let script =
        "sleep 1000 & (sleep 1000 &) ; sh -c 'trap \"\" HUP TERM; while :; do :; done' & echo done";
    let ended = end_of(shell(&[], script));
    assert_well(&ended);
    assert_eq!(ended.text(), "done\n");
}

#[test]
fn a_thousand_children_and_orphans_leave_no_zombie() {
    let script = r#"
        n=0
        while [ $n -lt 500 ]; do
            : &
            ( : & )
            n=$((n + 1))
        done
        wait
        tries=0
        while zombies=$(grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l); [ "$zombies" != 0 ]; do
            tries=$((tries + 1))
            [ $tries -lt 100 ] || break
        done
        read -r _ _ _ _ last < /proc/loadavg
        echo "zombies $zombies, at least a thousand processes: $((last > 1500))"
    "#;
    assert_eq!(
        shell_text(&[], script),
        "zombies 0, at least a thousand processes: 1\n"
    );
}

#[test]
fn a_guest_that_dies_is_told_from_a_command_that_fails() {
    // The kernel's own end: it can't tell what became of the command.
    let ended = end_of(shell(&[], "echo c > /proc/sysrq-trigger; sleep 1000"));
    assert_eq!(ended.code, Some(125), "{}", ended.stderr);
    let said = "minivm: the machine ended before its command did: the guest's kernel panicked";
    assert!(ended.stderr.starts_with(said), "{}", ended.stderr);
}
