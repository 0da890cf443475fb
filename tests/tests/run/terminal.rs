//! `-t`: the command has a terminal, and the user's is as it was afterwards.

use std::process::Child;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use minivm_tests::patience::with_limits_from;
use minivm_tests::program::ends_until;
use minivm_tests::terminal::Terminal;
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::LocalModes;

use crate::guest::{PATIENCE, shell};

/// minivm in a terminal of its own.
struct Session {
    child: Child,
    terminal: Terminal,
    screen: Receiver<Vec<u8>>,
    seen: String,
    before: String,
}

impl Session {
    fn start(flags: &[&str], script: &str) -> Self {
        let terminal = Terminal::new(33, 77);
        Session {
            before: terminal.settings_in_words(),
            child: terminal.start(&mut shell(flags, script)),
            screen: terminal.screen(),
            seen: String::new(),
            terminal,
        }
    }

    /// Waits until this is on the screen; what was before it is gone then.
    fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
                Err(why) => panic!("waiting for {text:?}: {why}; so far {:?}", self.seen),
            }
        }
        let (_, rest) = self.seen.split_once(text).unwrap();
        self.seen = rest.to_owned();
    }

    /// Waits for the end, and checks that the terminal is as it was.
    fn end(&mut self) -> Option<i32> {
        assert!(
            ends_until(&self.child, Instant::now() + PATIENCE),
            "no end; on the screen: {:?}",
            self.seen
        );
        let status = self.child.wait().unwrap();
        assert_eq!(self.terminal.settings_in_words(), self.before);
        status.code()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended, which is just as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_terminal_has_a_name_a_size_and_keys() {
    let script = "tty; stty size; echo $TERM; trap 'stty size; echo resized' WINCH; trap 'echo interrupted' INT; \
                  echo ready; until [ \"$line\" = last ]; do read -r line && echo got $line; done; cat; echo over; exit 5";
    let mut session = Session::start(&["-t"], script);
    session.expect("/dev/pts/0\r\n33 77\r\nxterm\r\nready\r\n");
    let now = session.terminal.settings();
    assert!(
        !now.local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG),
        "{now:?}"
    );
    // The guest's terminal echoes, and edits lines.
    session.terminal.press(b"wrong\x15hello\r");
    session.expect("hello\r\n");
    session.expect("got hello\r\n");
    session.terminal.resize(50, 132);
    // minivm isn't the leader of a session, so this isn't its controlling terminal, and the kernel sends it no SIGWINCH.
    kill_process(Pid::from_child(&session.child), Signal::WINCH).unwrap();
    session.expect("50 132\r\n");
    session.expect("resized\r\n");
    session.terminal.press(b"\x03");
    session.expect("interrupted\r\n");
    session.terminal.press(b"last\r");
    session.expect("got last\r\n");
    session.terminal.press(b"\x04");
    session.expect("over\r\n");
    assert_eq!(session.end(), Some(5));
}

#[test]
fn every_end_leaves_the_terminal_as_it_was() {
    let mut escaped = Session::start(&["-t"], "trap '' INT; echo ready; while :; do :; done");
    escaped.expect("ready");
    escaped.terminal.press(b"\x01x");
    assert_eq!(escaped.end(), Some(130));
    with_limits_from(Duration::from_secs(1), |limit| {
        let flags = ["-t", "--timeout", &format!("{}s", limit.as_secs())];
        let mut late = Session::start(&flags, "stty raw; while :; do echo flood; done");
        assert_eq!(late.end(), Some(124));
        let screen: Vec<u8> = late.screen.try_iter().flatten().collect();
        screen.windows(5).any(|seen| seen == b"flood").then_some(())
    });
    let mut killed = Session::start(
        &["-t"],
        "trap 'echo no' TERM; echo ready; while :; do :; done",
    );
    killed.expect("ready");
    let kill = |killed: &Session| {
        kill_process(Pid::from_child(&killed.child), Signal::TERM).unwrap();
    };
    kill(&killed);
    // Two that come at once are one.
    killed.expect("no");
    kill(&killed);
    assert_eq!(killed.end(), Some(143));
    let mut refused = Session::start(&["-t", "--user", "nobody"], "true");
    refused.expect("no user nobody\r\n");
    assert_eq!(refused.end(), Some(125));
}
