//! `minivm`: runs code in small virtual machines.

/// As the standard library's, which panics where stderr takes nothing: a full disk must not change how a command ends.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

/// As the standard library's, which panics where stdout takes nothing.
macro_rules! println {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        if let Err(error) = writeln!(std::io::stdout(), $($text)*) {
            $crate::command::cannot_print(&error);
        }
    }};
}

mod command;

use std::env::args_os;
use std::process::ExitCode;

use minivm_guest::inherited;
use minivm_machine::{copy_out, fetch, folders, monitor, streams};

fn main() -> ExitCode {
    // Before anything else: a child of minivm's own does nothing but its job.
    let code = monitor::answer(args_os(), command::MONITOR);
    let code = code.or_else(|| fetch::answer(args_os()));
    let code = code.or_else(|| folders::answer(args_os()));
    if let Some(code) = code.or_else(|| copy_out::answer(args_os())) {
        return code;
    }
    let ran = match inherited::put_right() {
        // Parsing the command line needs more stack than there is.
        Err(refused) if refused.is_of_the_stack() => Err(refused.into()),
        inherited => command::Cli::parse_line().run(inherited),
    };
    ran.unwrap_or_else(|error| {
        let limit = inherited::limit_behind(error.as_ref());
        let limit = limit.map_or_else(String::new, |limit| format!("; {limit}"));
        streams::tell(&format!("{error:#}{limit}"));
        ExitCode::from(command::EXIT_ERROR)
    })
}
