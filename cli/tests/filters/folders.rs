//! A process that serves folders, under strace: it does all that a guest can ask for.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;

use minivm_machine::folders::{self, Access, Folder, Running, Volume};
use minivm_tests::patience::{PATIENCE, wait_until};
use minivm_tests::processes;
use minivm_tests::program::run;

use crate::client::Client;
use crate::trace::of_role;
use crate::wire::{Wire, do_everything};
use crate::{check, lists};

/// Has the test be the program that strace looks at.
const TRACED: &str = "MINIVM_TEST_TRACED";

/// Lets this program serve folders as `minivm` does, whose `main` begins with that: the harness's `main` would run tests instead.
#[used]
#[allow(
    unsafe_code,
    reason = "a program that serves folders in another process finds that out before its main"
)]
// SAFETY: the C library calls the functions in this section, each once, with one thread.
#[unsafe(link_section = ".init_array")]
static ANSWER: extern "C" fn() = answer;

extern "C" fn answer() {
    if folders::answer(processes::command_line()).is_some() {
        std::process::exit(0);
    }
}

/// Has a folder with a repository served, and does everything in it.
fn serve() {
    let place = tempfile::tempdir().unwrap();
    let git = place.path().join(".git");
    fs::create_dir_all(git.join("hooks")).unwrap();
    fs::write(git.join("config"), "[core]\n").unwrap();
    let volume = Volume {
        folder: Folder::new(place.path(), Access::ReadWrite),
        at: "/work".into(),
    };
    let volumes = [volume];
    let (stream, theirs) = UnixStream::pair().unwrap();
    let running = Running::start(&volumes, theirs, &|| false, || {}).unwrap();
    let wire = Arc::new(Wire::new(stream));
    do_everything(&Client::mount(wire, 0));
    assert_eq!(running.end().ended, None);
    // That one may have been killed once it had reported. Another one ends by itself.
    let (stream, theirs) = UnixStream::pair().unwrap();
    let running = Running::start(&volumes, theirs, &|| false, || {}).unwrap();
    drop(stream);
    wait_until("the process goes on", || {
        let below = processes::below(std::process::id());
        below.iter().all(|process| !process.is_alive)
    });
    assert_eq!(running.end().ended, None);
}

#[test]
fn each_call_of_a_folder_server_is_made_or_has_a_reason() {
    if std::env::var_os(TRACED).is_some() {
        return serve();
    }
    let place = tempfile::tempdir().unwrap();
    let trace = place.path().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "--decode-pids=pidns", "-o"]);
    strace.arg(&trace).arg(std::env::current_exe().unwrap());
    let name = "folders::each_call_of_a_folder_server_is_made_or_has_a_reason";
    strace.args(["--exact", name]).env(TRACED, "1");
    let ended = run(&mut strace, PATIENCE);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let seen = of_role(&fs::read_to_string(trace).unwrap(), folders::COMMAND);
    let rows = lists::folders();
    assert!(rows.len() > 30, "{rows:#?}");
    check(&rows, &seen);
}
