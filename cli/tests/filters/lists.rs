//! The lists in machine/src/confine/calls.rs, as its source has them: each row with its reason, which stands behind it or on the lines before.

use std::fs;
use std::path::Path;

/// The list of another process's calls that is among a monitor's.
const OF_FETCHERS: &str = "FETCHER";

/// A call in a list.
#[derive(Debug)]
pub(crate) struct Row {
    /// The list's name.
    pub(crate) list: String,
    /// The call's name.
    pub(crate) call: String,
    /// The constants among its arguments. Of a request of KVM's, the name.
    pub(crate) words: Vec<String>,
    /// The number of a request of KVM's, by which strace writes those that it doesn't know.
    number: Option<String>,
    pub(crate) reason: String,
}

impl Row {
    /// Whether a call with this name is the row's, if its arguments have words.
    pub(crate) fn is_of(&self, name: &str, has: impl Fn(&str) -> bool) -> bool {
        let by_number = || {
            self.number
                .as_deref()
                .is_some_and(|it| has("0xae") && has(it))
        };
        name == self.call && (self.words.iter().all(|word| has(word)) || by_number())
    }

    /// Whether the call is there for a run on another host, or of another C library.
    pub(crate) fn is_for_others(&self) -> bool {
        self.reason.starts_with("also: ")
    }
}

/// All rows of a monitor's lists.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = of_files(&["calls.rs", "calls/x86_64.rs"]);
    rows.retain(|row| row.list != OF_FETCHERS);
    rows
}

/// All rows of the lists of a process that serves folders, but those that a monitor shares.
pub(crate) fn folders() -> Vec<Row> {
    of_files(&["calls/folders.rs"])
}

fn of_files(names: &[&str]) -> Vec<Row> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../machine/src/confine");
    let read = |name: &&str| of_source(&fs::read_to_string(sources.join(name)).unwrap());
    names.iter().flat_map(read).collect()
}

fn of_source(source: &str) -> Vec<Row> {
    let (mut rows, mut list, mut above) = (Vec::new(), None, String::new());
    // Whether the comment above is that of a row already; it may be that of the next ones, too.
    let mut is_taken = false;
    for line in source.lines().map(str::trim) {
        if let Some(named) = name_of_list(line) {
            list = Some(named);
        } else if line == "];" {
            list = None;
        }
        let Some(list) = list.as_ref().filter(|_| !line.ends_with('[')) else {
            above.clear();
            continue;
        };
        let comment = line.strip_prefix("// ");
        if comment.is_some() && is_taken {
            above.clear();
        }
        is_taken = comment.is_none();
        match comment {
            Some(comment) => above.extend([" ", comment]),
            None => rows.push(row(list, line, above.trim())),
        }
    }
    rows
}

/// The name of the list that begins with this line.
fn name_of_list(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("const ")?;
    let (name, kind) = rest.split_once(": ")?;
    (kind.starts_with("&[") && kind.ends_with('[')).then(|| name.to_owned())
}

fn row(list: &str, line: &str, above: &str) -> Row {
    let (code, behind) = line.split_once("//").unwrap_or((line, above));
    let list = list.to_owned();
    if let Some((_, number)) = code.split_once("(KVM, ") {
        let (name, reason) = behind.split_once(':').unwrap_or((behind, behind));
        return Row {
            list,
            call: "ioctl".into(),
            words: vec![name.trim().into()],
            number: number.split(')').next().map(str::to_owned),
            reason: reason.trim().into(),
        };
    }
    let mut constants = code.split("libc::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        rest[..end.unwrap_or(rest.len())].to_owned()
    });
    let call = constants.next().unwrap_or_else(|| panic!("{line}"));
    Row {
        list,
        call: call.strip_prefix("SYS_").unwrap().to_owned(),
        words: constants.collect(),
        number: None,
        reason: behind.trim().into(),
    }
}

#[test]
fn rows_are_read_with_their_reasons() {
    let source = "\
        pub(super) const THREAD: &[i64] = &[\n\
            libc::SYS_brk,  // malloc\n\
        ];\n\
        const OTHER: u64 = libc::PROT_EXEC;\n\
        pub(super) const CHECKED: &[(i64, &[Argument])] = &[\n\
            // Names of threads,\n\
            // and more.\n\
            (libc::SYS_prctl, &[Int(0, libc::PR_SET_NAME.cast_unsigned())]),\n\
            // Threads.\n\
            (libc::SYS_clone, &[]),\n\
        ];\n\
        pub(super) const REQUESTS: &[Opcode] = &[\n\
            none(KVM, 0x80), // KVM_RUN\n\
            none(KVM, 0xa2), // KVM_SET_TSC_KHZ: also: clones\n\
        ];\n";
    let rows = of_source(source);
    let shown: Vec<_> = rows
        .iter()
        .map(|row| (&*row.list, &*row.call, row.words.concat(), &*row.reason))
        .collect();
    let expected = [
        ("THREAD", "brk", "", "malloc"),
        (
            "CHECKED",
            "prctl",
            "PR_SET_NAME",
            "Names of threads, and more.",
        ),
        ("CHECKED", "clone", "", "Threads."),
        ("REQUESTS", "ioctl", "KVM_RUN", "KVM_RUN"),
        ("REQUESTS", "ioctl", "KVM_SET_TSC_KHZ", "also: clones"),
    ]
    .map(|(list, call, words, reason)| (list, call, words.to_owned(), reason));
    assert_eq!(shown, expected);
    assert!(rows[4].is_for_others() && !rows[3].is_for_others());
    assert!(rows[4].is_of("ioctl", |word| ["0xae", "0xa2"].contains(&word)));
}
