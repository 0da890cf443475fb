//! A pseudo-terminal: the end that a program has, and the end that a user has.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

/// A terminal of a test's own.
pub struct Terminal {
    /// What a user has: writing is pressing keys.
    keys: File,
    /// The terminal, as programs have it; until it is let go of.
    terminal: Option<File>,
}

impl Terminal {
    /// One with so many lines of so many characters.
    ///
    /// # Panics
    ///
    /// Where the system has none.
    pub fn new(rows: u16, columns: u16) -> Terminal {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let terminal = OpenOptions::new().read(true).write(true).open(name);
        let terminal = Terminal {
            keys: File::from(master),
            terminal: Some(terminal.unwrap()),
        };
        terminal.resize(rows, columns);
        terminal
    }

    /// Gives it another size.
    ///
    /// # Panics
    ///
    /// Where it can't be set.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.keys, size).unwrap();
    }

    /// Starts a program with it for all three streams.
    ///
    /// # Panics
    ///
    /// Where the program can't be started, or the terminal was let go of.
    pub fn start(&self, command: &mut Command) -> Child {
        let terminal = self.terminal.as_ref().unwrap();
        let stdio = || Stdio::from(terminal.try_clone().unwrap());
        let command = command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        let child = command.spawn().unwrap();
        // It keeps its files until others take their places.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        child
    }

    /// Whether it takes no more output: nothing is read from it, and what it holds is all that it can.
    ///
    /// # Panics
    ///
    /// Where it was let go of.
    pub fn is_full(&self) -> bool {
        let terminal = self.terminal.as_ref().unwrap();
        let mut polled = [PollFd::new(terminal, PollFlags::OUT)];
        poll(&mut polled, Some(&Timespec::default())).unwrap() == 0
    }

    /// Leaves it to the programs that have it, so that the screen ends with the last of them.
    pub fn let_go(&mut self) {
        self.terminal = None;
    }

    /// All its settings.
    ///
    /// # Panics
    ///
    /// Where it was let go of.
    pub fn settings(&self) -> Termios {
        tcgetattr(self.terminal.as_ref().unwrap()).unwrap()
    }

    /// The same, to be compared.
    ///
    /// # Panics
    ///
    /// Where it was let go of.
    pub fn settings_in_words(&self) -> String {
        format!("{:?}", self.settings())
    }

    /// Presses keys.
    ///
    /// # Panics
    ///
    /// Where no process has the terminal any more.
    pub fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).unwrap();
    }

    /// What comes on the screen, as it comes.
    ///
    /// # Panics
    ///
    /// Where there can be no thread.
    pub fn screen(&self) -> Receiver<Vec<u8>> {
        let mut output = self.keys.try_clone().unwrap();
        let (sender, screen) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // It fails with the terminal's last user.
            while let Ok(len @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        screen
    }
}
