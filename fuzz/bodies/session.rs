//! Any bytes as what a guest says in a session that copies files out.

use std::io::{self, Cursor};
use std::sync::mpsc;
use std::time::Duration;

use minivm_guest::channel::{Hello, Request, ToHost, VERSION};
use minivm_machine::{CopyIn, Ended, Files, Link, Session};

pub(crate) fn run(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else {
        return;
    };
    // Most of the time past the greeting, which is found no sooner by chance.
    let mut said = Vec::new();
    if kind % 4 != 0 {
        ToHost::Hello(Hello {
            version: VERSION,
            rings: None,
        })
        .encode(&mut said);
        ToHost::Started.encode(&mut said);
    }
    if kind % 4 == 2 {
        ToHost::FilesOf(0, None).encode(&mut said);
        ToHost::Files(bytes).encode(&mut said);
        ToHost::Files(&[]).encode(&mut said);
    } else {
        said.extend_from_slice(bytes);
    }
    let folder = std::env::temp_dir().join(format!("minivm-fuzz-session-{}", std::process::id()));
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
        copy_in: CopyIn::default(),
        copy_out: vec![Files {
            from: "/out".into(),
            to: folder.join("out"),
        }],
        max_copy_out: 1 << 20,
        events: happenings,
        ..Session::new(Request::default())
    };
    let link = Link {
        walls: None,
        greeted: false,
        from_guest: Box::new(Cursor::new(said)),
        to_guest: Box::new(io::sink()),
        folders: None,
        stop: Box::new(|| {}),
        end: Box::new(|| {
            Ok(Ended {
                host_memory: None,
                orderly: true,
                how: "it ended".into(),
            })
        }),
    };
    let _ = session.run(link);
    let _ = std::fs::remove_dir_all(&folder);
}
