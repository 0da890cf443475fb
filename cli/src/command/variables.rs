//! Environment variables as users give them: by flags, and in files as Docker reads them. They are bytes, as the system has them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use anyhow::{Context, bail};

/// What some editors begin a file with.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A flag's variable as it was given, or with the host's value; none where the host has none.
pub(super) fn given(entry: Vec<u8>) -> anyhow::Result<Option<Vec<u8>>> {
    if entry.is_empty() || entry.starts_with(b"=") {
        bail!(
            "the environment variable {:?} has no name: expected NAME or NAME=VALUE",
            shown(&entry)
        );
    }
    Ok(with_value(entry))
}

fn with_value(entry: Vec<u8>) -> Option<Vec<u8>> {
    if entry.contains(&b'=') {
        return Some(entry);
    }
    let value = std::env::var_os(OsString::from_vec(entry.clone()))?;
    Some([entry, b"=".to_vec(), value.into_vec()].concat())
}

/// A file's variables, a line each. Blanks before a name don't count; empty lines, and those that begin with #, are skipped.
pub(super) fn of_file(path: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text);
    let mut variables = Vec::new();
    for (line, number) in text.split(|&byte| byte == b'\n').zip(1..) {
        let line = without_indent(line.strip_suffix(b"\r").unwrap_or(line));
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if let Some(why) = fault(line) {
            bail!("{}, line {number}: {why}", path.display());
        }
        variables.extend(with_value(line.to_vec()));
    }
    Ok(variables)
}

/// Why a line is no variable.
fn fault(line: &[u8]) -> Option<String> {
    if line.contains(&0) {
        return Some(
            "it has a NUL byte in it, which no variable can hold; is the file text?".into(),
        );
    }
    let name = line.split(|&byte| byte == b'=').next().unwrap_or_default();
    if name.is_empty() {
        return Some("there is no name before the `=`: expected NAME or NAME=VALUE".into());
    }
    let blank = |text: &[u8]| String::from_utf8_lossy(text).contains(char::is_whitespace);
    blank(name).then(|| {
        format!(
            "the name {:?} has blanks in it: expected NAME or NAME=VALUE",
            shown(name)
        )
    })
}

fn without_indent(line: &[u8]) -> &[u8] {
    match std::str::from_utf8(line) {
        Ok(text) => text.trim_start().as_bytes(),
        Err(_) => line.trim_ascii_start(),
    }
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, text).unwrap();
        let path = file.path().display().to_string();
        of_file(file.path()).map_err(|error| {
            let error = format!("{error:#}");
            let error = error.strip_prefix(&path).expect("the file is named");
            anyhow::anyhow!("{error}")
        })
    }

    #[test]
    fn a_file_has_a_variable_a_line() {
        let env = read(b"# comment\n\nX=a b\r\nPATH\nMINIVM_TEST_NOT_SET\n").unwrap();
        assert_eq!(env[0], b"X=a b");
        assert!(env[1].starts_with(b"PATH=/"), "the host's value");
        assert_eq!(env.len(), 2);
    }

    #[test]
    fn what_is_before_a_name_does_not_count_and_what_is_in_a_value_does() {
        for (text, variables) in [
            (
                &b"  INDENT=2\n\t\tTABS=3"[..],
                &[&b"INDENT=2"[..], b"TABS=3"][..],
            ),
            (
                b"\xef\xbb\xbfBOM=1\nB=\xef\xbb\xbf",
                &[b"BOM=1", b"B=\xef\xbb\xbf"],
            ),
            (b" \t\r\n   # comment\n  \n", &[]),
            (
                b"A= b \nB=\"q\" # no comment\nC==\nD=",
                &[b"A= b ", b"B=\"q\" # no comment", b"C==", b"D="],
            ),
            (
                b"LATIN=\xe9\n N\xe9=1\n\xc2\xa0NBSP=1",
                &[b"LATIN=\xe9", b"N\xe9=1", b"NBSP=1"],
            ),
            (b"", &[]),
        ] {
            assert_eq!(
                read(text).unwrap(),
                variables,
                "{:?}",
                text.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn a_line_that_is_no_variable_is_named() {
        for (text, said) in [
            (
                &b"A=1\nSP ACE=1"[..],
                ", line 2: the name \"SP ACE\" has blanks",
            ),
            (b"export A=1", ", line 1: the name \"export A\" has blanks"),
            (b"A =1", ", line 1: the name \"A \" has blanks"),
            (b"\n\n  PATH \n", ", line 3: the name \"PATH \" has blanks"),
            (b"A\tB", ", line 1: the name \"A\\tB\" has blanks"),
            (b"A=1\n=novalue\n", ", line 2: there is no name"),
            (b"  =", ", line 1: there is no name"),
            (b"#\0\nA=\0\n", ", line 2: it has a NUL byte"),
            (b"A\0=1", ", line 1: it has a NUL byte"),
            (b"\xff\xfeA\0=\x001\0", ", line 1: it has a NUL byte"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
        let error = of_file(Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere");
    }

    #[test]
    fn a_flag_has_a_name() {
        assert_eq!(given(b" A b=\xff".to_vec()).unwrap().unwrap(), b" A b=\xff");
        assert_eq!(given(b"MINIVM_TEST_NOT_SET".to_vec()).unwrap(), None);
        for wrong in [&b""[..], b"=", b"=x"] {
            let error = given(wrong.to_vec()).unwrap_err().to_string();
            assert!(error.contains("has no name"), "{error}");
        }
    }
}
