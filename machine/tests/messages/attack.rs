//! A generator of what an attacker in init's place may send: every message in every order, with lies in every field, and bytes that are
//! no message.

use minivm_guest::channel::{
    Exit, Hello, KernelLog, Moment, Refusal, Status, Times, ToHost, VERSION,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// Kinds of frames, known and unknown.
const KINDS: std::ops::Range<u8> = 0x80..0x90;

/// A stream of messages. Most begin as a session does, since chance alone seldom gets that far; `started` says how the steps until the
/// command's start are encoded.
pub(crate) fn stream(started: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let steps = 0..=started.len();
    (steps, vec(piece(), 0..12)).prop_map(move |(steps, pieces)| {
        let begun = started[..steps].iter().chain(&pieces);
        begun.flatten().copied().collect()
    })
}

/// A message, as it is or damaged; a frame of any kind; or a few bytes.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let noise = || vec(any::<u8>(), 0..64);
    let damaged = (
        message(),
        any::<prop::sample::Index>(),
        any::<u8>(),
        any::<bool>(),
    );
    prop_oneof![
        12 => message(),
        2 => damaged.prop_map(|(mut bytes, at, byte, cut)| {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(if cut { at } else { bytes.len() });
            bytes
        }),
        2 => (KINDS, noise()).prop_map(|(tag, body)| {
            let len = u32::try_from(body.len()).unwrap();
            [&len.to_le_bytes()[..], &[tag], &body].concat()
        }),
        1 => (KINDS, any::<u32>(), noise()).prop_map(|(tag, len, body)| {
            [&len.to_le_bytes()[..], &[tag], &body].concat()
        }),
        1 => noise(),
    ]
}

/// Any message to the host, with any content.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let bytes = || prop_oneof![4 => vec(any::<u8>(), 0..64), 1 => vec(any::<u8>(), 5000)];
    prop_oneof![
        1 => hello(),
        1 => Just(encoded(&ToHost::Ready)),
        1 => Just(encoded(&ToHost::Time)),
        2 => Just(encoded(&ToHost::Started)),
        1 => refusal(),
        1 => any::<u32>().prop_map(|room| encoded(&ToHost::Room(room))),
        2 => bytes().prop_map(|bytes| encoded(&ToHost::Stdout(&bytes))),
        2 => bytes().prop_map(|bytes| encoded(&ToHost::Stderr(&bytes))),
        3 => (prop_oneof![3 => 0..2_u32, 1 => any::<u32>()], option::of(text())).prop_map(|(number, why)| {
            encoded(&ToHost::FilesOf(number, why))
        }),
        2 => bytes().prop_map(|bytes| encoded(&ToHost::Files(&bytes))),
        3 => entries().prop_map(|bytes| encoded(&ToHost::Files(&bytes))),
        1 => Just(encoded(&ToHost::Files(b""))),
        1 => text().prop_map(|text| encoded(&ToHost::Warning(text))),
        1 => log(),
        1 => exit(),
    ]
}

fn encoded(message: &ToHost) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

/// Text that a terminal may take for commands, or that is long.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,40}",
        "[\\x00-\\x1f\\x7f-\\u{9f}a]{0,40}",
        "[a-z\\n]{2000}"
    ]
}

fn hello() -> impl Strategy<Value = Vec<u8>> {
    let version = prop_oneof![3 => Just(VERSION), 1 => any::<u16>()];
    let rings = prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(0xfee0_0000),
        any::<u64>().prop_map(|address| address & !0xfff)
    ];
    (version, option::of(rings))
        .prop_map(|(version, rings)| encoded(&ToHost::Hello(Hello { version, rings })))
}

fn refusal() -> impl Strategy<Value = Vec<u8>> {
    let kinds = [Refusal::NotFound, Refusal::NotExecutable, Refusal::Failed];
    (prop::sample::select(kinds.to_vec()), text())
        .prop_map(|(kind, text)| encoded(&ToHost::Refused(kind(text))))
}

fn moment() -> impl Strategy<Value = Moment> {
    (any::<u64>(), any::<u64>()).prop_map(|(before, after)| Moment { before, after })
}

fn log() -> impl Strategy<Value = Vec<u8>> {
    let records = prop_oneof![
        vec(any::<u8>(), 0..200),
        "([0-9]{1,22},[0-9]{1,22},[0-9]{1,22},.;.{0,20}\n){0,5}".prop_map(String::into_bytes)
    ];
    let marks = option::of([moment(), moment()]);
    let line = option::of((any::<u64>(), moment()));
    (marks, line, records, any::<u64>()).prop_map(|(marks, line, records, gathered)| {
        encoded(&ToHost::Log(KernelLog {
            marks,
            line,
            records,
            gathered,
        }))
    })
}

fn exit() -> impl Strategy<Value = Vec<u8>> {
    let status = prop_oneof![
        any::<u8>().prop_map(Status::Code),
        any::<u8>().prop_map(Status::Signal)
    ];
    (status, any::<bool>(), any::<[u64; 8]>()).prop_map(|(status, out_of_memory, numbers)| {
        let [
            user_time,
            system_time,
            peak_memory,
            init,
            hello,
            request,
            exec,
            exit,
        ] = numbers;
        let times = Times {
            init,
            hello,
            request,
            exec,
            exit,
        };
        encoded(&ToHost::Exit(Exit {
            status,
            out_of_memory,
            user_time,
            system_time,
            peak_memory,
            times,
        }))
    })
}

/// Entries of a cpio archive, with names that lead elsewhere and sizes that are wrong.
fn entries() -> impl Strategy<Value = Vec<u8>> {
    let names = [
        "copied",
        "copied/a",
        "copied/a/b",
        "copied/../../victim",
        "/etc/victim",
        "..",
        "",
        "TRAILER!!!",
    ];
    let modes = [
        0o040_755, 0o100_644, 0o120_777, 0o020_600, 0o010_600, 0, 0o777_777,
    ];
    let number = prop_oneof![3 => 0..20_u32, 1 => any::<u32>()];
    let entry = (
        prop::sample::select(names.to_vec()),
        prop::sample::select(modes.to_vec()),
        number,
        vec(any::<u8>(), 0..20),
        option::weighted(0.1, (0..13_usize, any::<u32>())),
    );
    let entry = entry.prop_map(|(name, mode, size, data, lie)| {
        let name_size = u32::try_from(name.len() + 1).unwrap();
        let mut fields = [1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        if let Some((field, value)) = lie {
            fields[field] = value;
        }
        let fields = fields.map(|field| format!("{field:08x}"));
        let mut entry = [b"070701", fields.concat().as_bytes(), name.as_bytes()].concat();
        entry.resize((entry.len() + 1).next_multiple_of(4), 0);
        entry.extend(data);
        entry.resize(entry.len().next_multiple_of(4), 0);
        entry
    });
    vec(entry, 0..5).prop_map(|entries| entries.concat())
}
