//! A guest's last message, and the errors that other messages lead to; and what an attacker sends.

pub(crate) mod attack;

use minivm_guest::channel::{Exit, Status, Times, ToHost};
use minivm_machine::Error;

/// The last message of a guest whose command ends with this code.
pub(crate) fn exit(code: u8) -> ToHost<'static> {
    ToHost::Exit(Exit {
        status: Status::Code(code),
        out_of_memory: false,
        user_time: 0,
        system_time: 0,
        peak_memory: 0,
        times: Times::default(),
    })
}

/// The error with its causes, as a user sees it.
pub(crate) fn told(result: Result<impl std::fmt::Debug, Error>) -> String {
    let error: anyhow::Error = result.expect_err("it is refused").into();
    format!("{error:#}")
}
