//! The protocol between a worker and its host: one line of JSON for each message, and the interpreter's state after the line of a
//! suspension.
//!
//! The host doesn't trust the worker: it checks the length and the form of each message.

use std::io::{self, BufRead, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::task::{CALL_MAX, STATE_MAX};
use crate::Call;

/// The largest message in bytes.
pub(super) const MESSAGE_MAX: usize = CALL_MAX + (64 << 10);

/// A message of a worker.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromWorker {
    /// The call of a function of the host.
    Call(Call),
    /// The suspension at a call. `size` bytes of state follow.
    Suspended {
        call: Call,
        size: usize,
    },
    /// The end of the code; the process's exit code is the code's.
    Exited,
    TimedOut,
    OutOfMemory,
    /// The error of a state that can't be resumed.
    Unreadable(String),
}

/// The answer to a call: the function's result, or the message of an exception.
pub(super) type ToWorker = Result<Value, String>;

/// Errors of the protocol.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("a message is longer than {MESSAGE_MAX} bytes")]
    TooLong,
    #[error("a message cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("a message was not expected: {0}")]
    Unexpected(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Sends a message.
pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> Result<(), Fault> {
    let mut line = serde_json::to_vec(message)?;
    if line.len() >= MESSAGE_MAX {
        return Err(Fault::TooLong);
    }
    line.push(b'\n');
    Ok(to.write_all(&line)?)
}

/// Receives a message; `None` where the other end is closed.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> Result<Option<T>, Fault> {
    let mut line = Vec::new();
    let most = MESSAGE_MAX as u64;
    from.by_ref().take(most).read_until(b'\n', &mut line)?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(serde_json::from_slice(&line)?)),
        Some(_) if line.len() == MESSAGE_MAX => Err(Fault::TooLong),
        // The sender ended within a message.
        Some(_) => Ok(None),
    }
}

/// Receives the state that follows a suspension; `None` where the other end is closed before its end.
pub(super) fn receive_state(
    from: &mut impl BufRead,
    size: usize,
) -> Result<Option<Vec<u8>>, Fault> {
    if size > STATE_MAX {
        return Err(Fault::TooLong);
    }
    let mut state = Vec::new();
    from.by_ref().take(size as u64).read_to_end(&mut state)?;
    Ok((state.len() == size).then_some(state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Map, json};

    fn call() -> Call {
        Call {
            function: "ask".into(),
            args: vec![json!([1, {"a": null}])],
            kwargs: Map::new(),
        }
    }

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let messages = [
            FromWorker::Call(call()),
            FromWorker::Suspended {
                call: call(),
                size: 3,
            },
            FromWorker::Exited,
            FromWorker::Unreadable("é\n".into()),
        ];
        let mut bytes = Vec::new();
        for message in &messages {
            send(&mut bytes, message).unwrap();
        }
        let mut from = &bytes[..];
        for message in messages {
            assert_eq!(receive(&mut from).unwrap(), Some(message));
        }
        assert_eq!(receive::<FromWorker>(&mut from).unwrap(), None);
    }

    #[test]
    fn messages_that_are_too_long_are_neither_sent_nor_received() {
        let long = "x".repeat(MESSAGE_MAX);
        assert!(matches!(send(&mut io::sink(), &long), Err(Fault::TooLong)));
        let mut endless = io::BufReader::new(io::repeat(b'x'));
        let received = receive::<FromWorker>(&mut endless);
        assert!(matches!(received, Err(Fault::TooLong)));
        let mut endless = io::BufReader::new(io::repeat(b'x'));
        assert!(receive_state(&mut endless, STATE_MAX + 1).is_err());
        assert_eq!(receive_state(&mut &b"ab"[..], 3).unwrap(), None);
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = format!("{{\"unreadable\":{}", "[".repeat(1 << 20));
        let received = receive::<FromWorker>(&mut format!("{deep}\n").as_bytes());
        assert!(matches!(received, Err(Fault::Unreadable(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = receive::<FromWorker>(&mut &bytes[..]);
            let _ = receive::<ToWorker>(&mut &bytes[..]);
        }

        #[test]
        fn any_words_of_the_protocol_are_refused_without_a_panic(
            text in "(\\{|\\}|\"call\"|\"suspended\"|\"exited\"|\"function\"|\"args\"|\"kwargs\"|\"size\"|:|,|\\[|\\]|-?[0-9]{1,30}|\n)*"
        ) {
            let mut from = text.as_bytes();
            while let Ok(Some(_)) = receive::<FromWorker>(&mut from) {}
        }
    }
}
