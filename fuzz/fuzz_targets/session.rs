//! Any bytes as a guest's side of a session that copies files out.
#![no_main]

use std::io::{self, Cursor};
use std::sync::mpsc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use minivm_guest::channel::{Hello, Request, ToHost, VERSION};
use minivm_machine::{Ended, Files, Link, Session};

fuzz_target!(|data: &[u8]| {
    let Some((&kind, bytes)) = data.split_first() else {
        return;
    };
    // Mostly after a greeting, which a fuzzer would hardly find by chance.
    let mut sent = Vec::new();
    if kind % 4 != 0 {
        ToHost::Hello(Hello {
            version: VERSION,
            rings: None,
        })
        .encode(&mut sent);
        ToHost::Started.encode(&mut sent);
    }
    if kind % 4 == 2 {
        ToHost::FilesOf(0, None).encode(&mut sent);
        ToHost::Files(bytes).encode(&mut sent);
        ToHost::Files(&[]).encode(&mut sent);
    } else {
        sent.extend_from_slice(bytes);
    }
    let folder = std::env::temp_dir().join("minivm-fuzz-session");
    let _ = std::fs::remove_dir_all(&folder);
    let (_events, happenings) = mpsc::channel();
    let session = Session {
        request: Request::default(),
        stdin: None,
        stdout: Box::new(io::sink()),
        stderr: Box::new(io::sink()),
        boot_limit: Duration::from_secs(60),
        timeout: None,
        max_output: Some(1000),
        copy_in: Vec::new(),
        copy_out: vec![Files {
            from: "/out".into(),
            to: folder.join("out"),
        }],
        max_copy_out: 1 << 20,
        events: happenings,
        ..Session::new(Request::default())
    };
    let link = Link {
        greeted: false,
        from_guest: Box::new(Cursor::new(sent)),
        to_guest: Box::new(io::sink()),
        stop: Box::new(|| {}),
        end: Box::new(|| {
            Ok(Ended {
                orderly: true,
                how: "it ended".into(),
            })
        }),
    };
    let _ = session.run(link);
});
