//! Messages of a worker, and the ends that they mean.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::Write;

/// Serves a worker that sends these bytes; returns its last message and the answers to it.
fn served(bytes: &[u8]) -> (Result<Option<LastMessage>, Fault>, Vec<u8>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut functions: BTreeMap<String, Function> = BTreeMap::new();
    functions.insert("f".into(), Box::new(|call| Ok(Value::from(call.args))));
    theirs.write_all(bytes).unwrap();
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    let last = serve(ours, &mut functions);
    let mut answers = Vec::new();
    std::io::Read::read_to_end(&mut theirs, &mut answers).unwrap();
    (last, answers)
}

fn lines(messages: &[Value]) -> Vec<u8> {
    let lines: Vec<String> = messages.iter().map(|line| format!("{line}\n")).collect();
    lines.concat().into_bytes()
}

#[test]
fn calls_are_answered_until_the_last_message() {
    let call = json!({"call": {"function": "f", "args": [1], "kwargs": {}}});
    let (last, answers) = served(&lines(&[call.clone(), call, json!("timed_out")]));
    assert_eq!(last.unwrap(), Some(LastMessage::Ended(Outcome::TimedOut)));
    assert_eq!(answers, lines(&[json!({"Ok": [1]}), json!({"Ok": [1]})]));
}

#[test]
fn a_function_outside_the_scope_is_not_called() {
    let call = json!({"call": {"function": "g", "args": [], "kwargs": {}}});
    assert!(matches!(served(&lines(&[call])).0, Err(Fault::Unexpected(name)) if name == "g"));
}

#[test]
fn a_suspension_needs_its_whole_state() {
    let call = json!({"function": "ask", "args": [], "kwargs": {}});
    let mut bytes = lines(&[json!({"suspended": {"call": call, "size": 5}})]);
    bytes.extend(b"1234");
    assert_eq!(served(&bytes).0.unwrap(), None);
    bytes.push(b'5');
    let last = served(&bytes).0.unwrap();
    assert!(
        matches!(last, Some(LastMessage::Ended(Outcome::Suspended { state, .. })) if state == b"12345")
    );
}

#[test]
fn a_workers_report_counts_only_if_it_exited() {
    let last = || Some(LastMessage::Ended(Outcome::OutOfMemory));
    assert_eq!(ended(End::TimedOut, last()).unwrap(), End::TimedOut);
    assert_eq!(ended(End::Signal(11), last()).unwrap(), End::Signal(11));
    assert_eq!(ended(End::Exited(1), last()).unwrap(), End::OutOfMemory);
    let over = End::Exited(task::OVER);
    assert_eq!(ended(over.clone(), None).unwrap(), End::OutOfMemory);
    let exited = Some(LastMessage::Ended(Outcome::Exited(0)));
    assert_eq!(ended(over.clone(), exited).unwrap(), over);
    let error = ended(
        End::Exited(1),
        Some(LastMessage::Unreadable("a\x1b[2Jb".into())),
    )
    .unwrap_err();
    assert!(error.to_string().ends_with("a[2Jb"), "{error}");
}

proptest! {
    #[test]
    fn any_bytes_of_a_worker_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = served(&bytes);
    }

    #[test]
    fn any_sequence_of_worker_messages_is_survived(
        text in "(\\{\"call\":\\{\"function\":\"f\",\"args\":\\[|\\],\"kwargs\":\\{\\}\\}\\}|\"exited\"|\\{\"suspended\":|[0-9a-z{}:\", ]|\n)*"
    ) {
        let _ = served(text.as_bytes());
    }
}
