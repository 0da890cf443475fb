use std::collections::BTreeSet;
use std::io;

use minivm_tests::fork::{Ended, forked};

use super::*;
use crate::confine::descriptors;

/// Behind the numbers of all calls that kernels may have, and a number far behind.
const END: i64 = UNKNOWN.end + 1;
const END_OF_ALL: i64 = i32::MAX as i64;

/// Calls that newer kernels keep from filters: x86-64's uretprobe and uprobe, which are the kernel's own and refuse any other caller.
const UNFILTERED: [i64; 2] = [335, 336];

/// Makes a call that is to be refused, with arguments that make no sense to any.
#[allow(unsafe_code, reason = "calls of any number")]
fn call(number: i64) -> io::Result<i64> {
    // SAFETY: the filter refuses it, before the kernel looks at its arguments.
    match unsafe { libc::syscall(number, -1, -1, -1, -1, -1, -1) } {
        -1 => Err(io::Error::last_os_error()),
        done => Ok(done),
    }
}

/// Makes calls behind the filters of a process, and of its vCPU's thread if `of_vcpu`; returns their errors, or how the first ended it.
fn behind_filters(of_vcpu: bool, numbers: Vec<i64>) -> Ended {
    forked(move |_| {
        // The signal that ends the process would leave a core dump.
        descriptors::limit(64).unwrap();
        restrict_process().unwrap();
        // A thread of its own, which doesn't end the process.
        let made = std::thread::spawn(move || {
            if of_vcpu {
                restrict_vcpu().unwrap();
            }
            let results = numbers.into_iter().map(call);
            results
                .map(|result| result.map_err(|error| error.raw_os_error()))
                .collect::<BTreeSet<_>>()
        });
        format!("{:?}", made.join().unwrap())
    })
}

/// The calls that return errors: those that are refused, and probes.
fn answered() -> (Vec<i64>, Vec<i64>) {
    let probes = calls::PROBES.iter().copied().chain(UNKNOWN).collect();
    ([calls::REFUSED, arch::REFUSED].concat(), probes)
}

#[test]
fn every_other_call_ends_the_process() {
    let (refused, probes) = answered();
    let granted = process_calls().unwrap();
    let known = |number: &i64| {
        granted.contains_key(number) || refused.contains(number) || probes.contains(number)
    };
    let strange = [-1, END_OF_ALL, 1 << 30];
    let known = |number: &i64| known(number) || UNFILTERED.contains(number);
    for number in (0..END).filter(|number| !known(number)).chain(strange) {
        let ended = behind_filters(false, vec![number]);
        assert_eq!(ended, Ended::Killed(libc::SIGSYS), "call {number}");
    }
}

#[test]
fn a_vcpus_thread_makes_fewer_calls() {
    let (process, thread) = (process_calls().unwrap(), thread_calls().unwrap());
    let (refused, probes) = answered();
    let answered = |call: &i64| refused.contains(call) || probes.contains(call);
    let fewer = |call: &i64| !thread.contains_key(call) && !answered(call);
    let others: Vec<_> = process.into_keys().filter(fewer).collect();
    assert!(others.len() > 20, "{others:?}");
    for number in others {
        let ended = behind_filters(true, vec![number]);
        assert_eq!(ended, Ended::Killed(libc::SIGSYS), "call {number}");
    }
}

#[test]
fn names_are_refused_and_probes_are_missing() {
    let (refused, probes) = answered();
    for of_vcpu in [false, true] {
        let errors = |number: i32| Ended::Returned(format!("{{Err(Some({number}))}}"));
        let ended = behind_filters(of_vcpu, refused.clone());
        assert_eq!(ended, errors(libc::EACCES));
        let ended = behind_filters(of_vcpu, probes.clone());
        assert_eq!(ended, errors(libc::ENOSYS));
    }
}

/// Makes these calls behind an unpacker's filter; returns which of them it let through to the kernel.
fn let_through(names: Names, calls: &[i64]) -> Vec<i64> {
    let passes = |number: &&i64| {
        let ended = forked(|_| {
            descriptors::limit(64).unwrap();
            restrict_unpacker(names).unwrap();
            let error = call(**number).unwrap_err();
            matches!(error.raw_os_error(), Some(libc::EACCES | libc::ENOSYS)).to_string()
        });
        ended == Ended::Returned("false".into())
    };
    calls.iter().filter(passes).copied().collect()
}

#[test]
fn an_unpacker_makes_few_calls_and_none_with_a_name_where_it_fills_a_file() {
    let (folder, rooted) = (unpacker::FOLDER, unpacker::ROOTED);
    let granted: BTreeSet<_> = unpacker_calls(Names::OfFolder)
        .unwrap()
        .into_keys()
        .collect();
    let others = process_calls().unwrap().into_keys();
    let others: Vec<_> = others.filter(|call| !granted.contains(call)).collect();
    assert!(others.len() > 20, "{others:?}");
    for (names, passing) in [
        (Names::None, &[][..]),
        (Names::OfHost, folder),
        (Names::OfFolder, &[folder, rooted].concat()),
    ] {
        let tried = [folder, rooted, &others].concat();
        assert_eq!(let_through(names, &tried), passing, "{names:?}");
    }
}

#[test]
fn no_call_is_in_two_lists() {
    let (refused, probes) = answered();
    let mut all = [calls::THREAD, calls::PROCESS, arch::PROCESS].concat();
    let checked = [calls::THREAD_CHECKED, calls::PROCESS_CHECKED].concat();
    let checked: BTreeSet<i64> = checked.into_iter().map(|(call, _)| call).collect();
    // The first list that has a call decides: what the checks leave of these two are looks at names.
    let by_name = [libc::SYS_newfstatat, libc::SYS_statx];
    let errors = refused.iter().chain(&probes);
    all.extend(
        errors
            .filter(|call| !by_name.contains(call))
            .chain(&checked),
    );
    assert_once(all);
    let mut all = [
        fetcher::CALLS,
        arch::FETCHER,
        fetcher::NETWORK,
        calls::THREAD,
    ]
    .concat();
    let checked = [fetcher::CHECKED, fetcher::NETWORK_CHECKED].concat();
    let checked: BTreeSet<i64> = checked.into_iter().map(|(call, _)| call).collect();
    // With a network there are sockets that aren't connected.
    all.extend(checked.into_iter().filter(|call| *call != libc::SYS_sendto));
    assert_once(all);
    let mut all = [folders::CALLS, calls::THREAD].concat();
    all.extend(folders::CHECKED.iter().map(|(call, _)| *call));
    assert_once(all);
}

fn assert_once(calls: Vec<i64>) {
    let once: BTreeSet<i64> = calls.iter().copied().collect();
    assert_eq!(calls.len(), once.len());
}

/// Calls with arguments that no process may use, though it may make these calls with others.
fn bad_arguments() -> [(&'static str, i64, [i64; 6]); 9] {
    use libc::*;
    let parent = i64::from(std::os::unix::process::parent_id());
    let own = i64::from(std::process::id());
    let page = 4096;
    let private = i64::from(MAP_PRIVATE | MAP_ANONYMOUS);
    let executable = i64::from(PROT_READ | PROT_EXEC);
    [
        (
            "executable memory",
            SYS_mmap,
            [0, page, executable, private, -1, 0],
        ),
        (
            "memory made executable",
            SYS_mprotect,
            [0, page, executable, 0, 0, 0],
        ),
        ("a fork", SYS_clone, [i64::from(SIGCHLD), 0, 0, 0, 0, 0]),
        (
            "a thread in a namespace",
            SYS_clone,
            [i64::from(CLONE_THREAD | CLONE_NEWNS), 0, 0, 0, 0, 0],
        ),
        (
            "a signal to another process",
            SYS_tgkill,
            [parent, parent, 0, 0, 0, 0],
        ),
        ("typing into a terminal", SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]),
        (
            "signals by a descriptor",
            SYS_fcntl,
            [0, i64::from(F_SETOWN), own, 0, 0, 0],
        ),
        (
            "core dumps",
            SYS_prctl,
            [i64::from(PR_SET_DUMPABLE), 1, 0, 0, 0, 0],
        ),
        ("a listener at a filter", SYS_seccomp, [1, 8, 0, 0, 0, 0]),
    ]
}

/// Makes a call behind the filter of a monitor's process.
#[allow(unsafe_code, reason = "calls with arguments that are refused")]
fn with_arguments(number: i64, [a, b, c, d, e, f]: [i64; 6]) -> io::Result<i64> {
    // SAFETY: the filter refuses it, before the kernel looks at its arguments.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => Err(io::Error::last_os_error()),
        done => Ok(done),
    }
}

/// What is allowed with some arguments only, tried with others: each ends the process.
#[test]
fn other_arguments_end_the_process() {
    let address = [0_u8; 16];
    let address = address.as_ptr() as i64;
    let to_another = (
        "an address of a message",
        libc::SYS_sendto,
        [0, 0, 0, 0, address, 16],
    );
    for (what, number, arguments) in bad_arguments().into_iter().chain([to_another]) {
        let ended = forked(|_| {
            descriptors::limit(64).unwrap();
            restrict_process().unwrap();
            format!("{:?}", with_arguments(number, arguments))
        });
        assert_eq!(ended, Ended::Killed(libc::SIGSYS), "{what}");
    }
}

/// Behind a fetcher's filter, makes calls; returns their results.
fn as_fetcher(network: bool, calls: Vec<(i64, [i64; 6])>) -> Ended {
    forked(move |_| {
        restrict_fetcher(network).unwrap();
        let results: BTreeSet<_> = calls
            .into_iter()
            .map(|(number, arguments)| {
                with_arguments(number, arguments).map_err(|error| error.raw_os_error())
            })
            .collect();
        format!("{results:?}")
    })
}

#[test]
fn every_other_call_of_a_fetcher_is_refused() {
    for network in [false, true] {
        let granted = fetcher_calls(network).unwrap();
        let probes: Vec<_> = calls::PROBES.iter().copied().chain(UNKNOWN).collect();
        let known = |number: &i64| granted.contains_key(number) || probes.contains(number);
        let known = |number: &i64| known(number) || UNFILTERED.contains(number);
        let strange = [-1, END_OF_ALL, 1 << 30];
        let others = (0..END).filter(|number| !known(number)).chain(strange);
        let others: Vec<_> = others.map(|number| (number, [-1; 6])).collect();
        for call in [
            libc::SYS_execve,
            libc::SYS_ptrace,
            libc::SYS_kill,
            libc::SYS_mount,
        ] {
            assert!(others.contains(&(call, [-1; 6])), "call {call}");
        }
        let refused = Ended::Returned(format!("{{Err(Some({}))}}", libc::EPERM));
        assert_eq!(as_fetcher(network, others), refused);
        for (what, number, arguments) in bad_arguments() {
            let ended = as_fetcher(network, vec![(number, arguments)]);
            assert_eq!(ended, refused, "{what}");
        }
        let unix = [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0];
        assert_eq!(as_fetcher(network, vec![(libc::SYS_socket, unix)]), refused);
    }
}

/// Behind the filter of a process that serves folders, makes a call; returns its error, or how it ended the process.
fn as_folder_server(number: i64, arguments: [i64; 6]) -> Ended {
    forked(move |_| {
        descriptors::limit(64).unwrap();
        restrict_folders().unwrap();
        format!("{:?}", with_arguments(number, arguments))
    })
}

#[test]
fn every_other_call_of_a_folder_server_ends_it() {
    let granted = folders_calls().unwrap();
    let (refused, probes) = answered();
    let known = |number: &i64| {
        granted.contains_key(number) || refused.contains(number) || probes.contains(number)
    };
    let known = |number: &i64| known(number) || UNFILTERED.contains(number);
    let others: Vec<i64> = (0..END).filter(|number| !known(number)).collect();
    let made = [
        libc::SYS_execve,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_ptrace,
        libc::SYS_kill,
        libc::SYS_mount,
        libc::SYS_open_tree,
        libc::SYS_mknodat,
        libc::SYS_fchownat,
        libc::SYS_setxattr,
    ];
    for call in made {
        assert!(others.contains(&call), "call {call}");
    }
    for number in others {
        let ended = as_folder_server(number, [-1; 6]);
        assert_eq!(ended, Ended::Killed(libc::SIGSYS), "call {number}");
    }
    for (what, number, arguments) in bad_arguments() {
        let ended = as_folder_server(number, arguments);
        assert_eq!(ended, Ended::Killed(libc::SIGSYS), "{what}");
    }
}
