//! The interpreter and its hosts: `worker` in a process of its own, the program `minivm-worker`, and `in_process` in the caller's.

mod builtin;
mod clock;
mod dialect;
mod host;
mod in_process;
mod interpreter;
mod memory;
mod printer;
mod stdio;
mod traceback;
mod value;
mod worker;

use super::{depth, end, failed, scope, task, wire};

pub use in_process::InProcess;
pub use memory::Allocator;
pub use worker::work;
