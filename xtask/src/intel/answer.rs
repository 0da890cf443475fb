//! The machine's second serial port carries the command's output, between two lines that begin with the machine's token. The second line
//! has the exit code; where it is missing, the machine ended before the command did.

use std::io::{BufRead, Write};

use anyhow::{Context, Result};

/// Copies the command's output to `out`, each line as it comes, and returns the command's exit code; `None` where the machine ended without
/// one. A last line without an end gets one.
///
/// # Errors
///
/// If the port can't be read, or `out` can't be written to.
pub(super) fn copy(mut port: impl BufRead, token: &str, mut out: impl Write) -> Result<Option<u8>> {
    let mut started = false;
    // Init ends the command's output with a line break, which makes an empty line of it in most cases: so one waits for the next line.
    let mut empty = false;
    let mut line = Vec::new();
    loop {
        line.clear();
        port.read_until(b'\n', &mut line)
            .context("cannot read what the emulated machine sends")?;
        let Some(text) = line.strip_suffix(b"\n") else {
            return Ok(None);
        };
        match word(text, token) {
            Some("started") => started = true,
            Some(word) if started => return Ok(exit_code(word)),
            _ if started => {
                let before: &[u8] = if empty { b"\n" } else { b"" };
                empty = text.is_empty();
                let line: &[u8] = if empty { b"" } else { &line };
                out.write_all(before)
                    .and_then(|()| out.write_all(line))
                    .and_then(|()| out.flush())
                    .context("cannot write the command's output")?;
            }
            _ => {}
        }
    }
}

/// Returns what follows the token in a line that begins with it.
fn word<'a>(line: &'a [u8], token: &str) -> Option<&'a str> {
    let line = std::str::from_utf8(line).ok()?;
    line.strip_prefix(token)?.strip_prefix(' ')
}

fn exit_code(word: &str) -> Option<u8> {
    word.strip_prefix("exited ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(port: &str) -> (Option<u8>, String) {
        let mut out = Vec::new();
        let code = copy(port.as_bytes(), "t0k", &mut out).unwrap();
        (code, String::from_utf8(out).unwrap())
    }

    #[test]
    fn output_is_what_stands_between_the_two_lines() {
        let of = |code, text: &str| (Some(code), text.to_owned());
        assert_eq!(copied("t0k started\n\nt0k exited 0\n"), of(0, ""));
        assert_eq!(copied("x\nt0k started\na\n\nt0k exited 7\n"), of(7, "a\n"));
        assert_eq!(
            copied("t0k started\na\n\nb\nt0k exited 7\nx"),
            of(7, "a\n\nb\n")
        );
        let others = "t0 exited 1\nt0k\n t0k exited 1\n";
        assert_eq!(
            copied(&format!("t0k started\n{others}\nt0k exited 2\n")),
            of(2, others)
        );
    }

    #[test]
    fn a_machine_that_ends_early_gives_no_exit_code() {
        for (port, text) in [
            ("", ""),
            ("t0k exited 0\n", ""),
            ("t0k started\na\nb", "a\n"),
            ("t0k started\na\n\nt0k exited 0", "a\n"),
            ("t0k started\n\nt0k exited\n", ""),
        ] {
            assert_eq!(copied(port), (None, text.to_owned()), "{port:?}");
        }
    }
}
