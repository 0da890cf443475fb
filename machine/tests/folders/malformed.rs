//! Messages that aren't right: too short, too long, of no kind, at the wrong time.

use std::fs;

use minivm_machine::folders::{Access, Folder, REQUEST_MAX, Server};
use rustix::io::Errno;
use tempfile::tempdir;

use crate::client::{Arg, Client, RDWR, ROOT, op, request, tree, word};

fn error_of(server: &Server, folder: u16, request: &[u8]) -> Option<Errno> {
    let mut reply = Vec::new();
    server.answer(folder, request, &mut reply);
    (!reply.is_empty()).then(|| Errno::from_raw_os_error(-word(&reply, 4).cast_signed()))
}

#[test]
fn every_request_cut_short_is_refused() {
    let place = tempdir().unwrap();
    tree(place.path(), &["file"]);
    let client = Client::of(place.path());
    let at = client.open("file", RDWR).unwrap();
    let name = Arg::Text(b"name");
    let zeros = |len: usize| Arg::Bytes(&[0; 88][..len]);
    let requests = [
        (op::LOOKUP, ROOT, vec![name]),
        (op::GETATTR, ROOT, vec![zeros(16)]),
        (op::SETATTR, at.0, vec![zeros(72)]),
        (op::SYMLINK, ROOT, vec![name, name]),
        (op::MKNOD, ROOT, vec![zeros(16), name]),
        (op::MKDIR, ROOT, vec![zeros(8), name]),
        (op::UNLINK, ROOT, vec![name]),
        (op::RENAME, ROOT, vec![Arg::Long(ROOT), name, name]),
        (
            op::RENAME2,
            ROOT,
            vec![Arg::Long(ROOT), zeros(8), name, name],
        ),
        (op::LINK, ROOT, vec![Arg::Long(at.0), name]),
        (op::OPEN, at.0, vec![zeros(4)]),
        (op::READ, at.0, vec![Arg::Long(at.1), zeros(12)]),
        (
            op::WRITE,
            at.0,
            vec![
                Arg::Long(at.1),
                Arg::Long(0),
                Arg::Word(3),
                zeros(20),
                Arg::Bytes(b"abc"),
            ],
        ),
        (op::CREATE, ROOT, vec![zeros(16), name]),
        (op::ACCESS, ROOT, vec![zeros(4)]),
        (op::FALLOCATE, at.0, vec![Arg::Long(at.1), zeros(20)]),
        (op::LSEEK, at.0, vec![Arg::Long(at.1), zeros(12)]),
        (op::READDIR, ROOT, vec![zeros(20)]),
        (op::RELEASE, at.0, vec![zeros(8)]),
        (op::INIT, 0, vec![zeros(16)]),
    ];
    for (opcode, node, args) in &requests {
        let whole = request(*opcode, 7, *node, args);
        for len in 0..whole.len() {
            // Its length tells the truth, so that the arguments alone are short; and it doesn't.
            let mut short = whole[..len].to_vec();
            let lying = error_of(&client.server, 0, &short);
            assert_eq!(
                lying,
                (len >= 40).then_some(Errno::INVAL),
                "{opcode} of {len} bytes"
            );
            if len >= 40 {
                short[..4].copy_from_slice(&u32::try_from(len).unwrap().to_ne_bytes());
                assert_eq!(
                    error_of(&client.server, 0, &short),
                    Some(Errno::INVAL),
                    "{opcode} of {len} bytes"
                );
            }
        }
    }
    assert_eq!(client.names("", false).unwrap(), ["file"]);
    assert_eq!(fs::read(place.path().join("file")).unwrap(), b"file");
}

#[test]
fn what_is_too_large_is_refused() {
    let place = tempdir().unwrap();
    tree(place.path(), &["file"]);
    let client = Client::of(place.path());
    let at = client.open("file", RDWR).unwrap();
    assert_eq!(
        client.write(at, 0, &vec![0; (128 << 10) + 1], 0),
        Err(Errno::INVAL)
    );
    let huge = vec![b'x'; REQUEST_MAX];
    assert_eq!(
        client.call(op::LOOKUP, ROOT, &[Arg::Text(&huge)]),
        Err(Errno::INVAL)
    );
    assert_eq!(client.lookup(ROOT, &huge[..4000]), Err(Errno::NAMETOOLONG));
    // As much as fits is returned, however much is asked for.
    client.write(at, 0, &vec![1; 128 << 10], 0).unwrap();
    client.write(at, 128 << 10, &[1], 0).unwrap();
    assert_eq!(client.read(at, 0, u32::MAX).unwrap().len(), 128 << 10);
    assert_eq!(client.list("", true, u32::MAX).unwrap().len(), 1);
    // A write whose data is shorter than it says.
    let short = [
        Arg::Long(at.1),
        Arg::Long(0),
        Arg::Word(100),
        Arg::Bytes(&[0; 20]),
        Arg::Bytes(b"abc"),
    ];
    assert_eq!(client.call(op::WRITE, at.0, &short), Err(Errno::INVAL));
}

#[test]
fn unknown_requests_folders_and_times_are_errors() {
    let place = tempdir().unwrap();
    let server = Server::new(&[Folder::new(place.path(), Access::ReadWrite)]).unwrap();
    let lookup = request(op::LOOKUP, 1, ROOT, &[Arg::Text(b"x")]);
    assert_eq!(
        error_of(&server, 0, &lookup),
        Some(Errno::IO),
        "before INIT"
    );
    assert_eq!(error_of(&server, 1, &lookup), Some(Errno::NODEV));
    let old = request(
        op::INIT,
        1,
        0,
        &[Arg::Word(6), Arg::Word(1), Arg::Bytes(&[0; 56])],
    );
    assert_eq!(error_of(&server, 0, &old), Some(Errno::PROTO));
    let client = Client::of(place.path());
    for opcode in (0..5000).chain([u32::MAX]) {
        let served = matches!(opcode, 1..=6 | 8..=18 | 20 | 26..=30 | 34 | 35 | 38 | 42..=46);
        if !served {
            assert_eq!(
                client.call(opcode, ROOT, &[Arg::Bytes(&[0; 64])]),
                Err(Errno::NOSYS),
                "{opcode}"
            );
        }
    }
    assert_eq!(client.call(op::GETXATTR, ROOT, &[]), Err(Errno::NOSYS));
    // Extensions, which weren't agreed on.
    let mut extended = lookup;
    extended[36] = 1;
    assert_eq!(error_of(&client.server, 0, &extended), Some(Errno::INVAL));
    client.call(op::DESTROY, 0, &[]).unwrap();
    assert_eq!(client.attr(ROOT), Err(Errno::IO));
}

#[test]
fn nodes_and_handles_that_do_not_exist_are_errors() {
    let place = tempdir().unwrap();
    let client = Client::of(place.path());
    for node in [0, 2, 1 << 40, u64::MAX] {
        assert_eq!(client.attr(node), Err(Errno::STALE));
        assert_eq!(client.lookup(node, "x"), Err(Errno::STALE));
        assert_eq!(client.open_node(node, RDWR), Err(Errno::STALE));
        assert_eq!(
            client.call(
                op::RENAME,
                ROOT,
                &[Arg::Long(node), Arg::Text(b"a"), Arg::Text(b"b")]
            ),
            Err(Errno::STALE)
        );
        assert_eq!(
            client.call(op::LINK, ROOT, &[Arg::Long(node), Arg::Text(b"a")]),
            Err(Errno::STALE)
        );
        assert_eq!(
            client.list_from((ROOT, node), true, 0, 100).err(),
            Some(Errno::BADF)
        );
        assert_eq!(client.release((ROOT, node)), Err(Errno::BADF));
    }
    // Offsets in a folder that it has never returned.
    let handle =
        crate::client::number(&client.call(op::OPENDIR, ROOT, &[Arg::Long(0)]).unwrap(), 0);
    for offset in [1, 12345, i64::MAX as u64, u64::MAX] {
        let _ = client.list_from((ROOT, handle), true, offset, 4096);
    }
    assert_eq!(client.read((ROOT, handle), 0, 100), Err(Errno::BADF));
}

/// Runs in a process of its own, which has no descriptors left.
#[test]
fn a_host_without_descriptors_says_so_to_the_guest() {
    const NAME: &str = "malformed::a_host_without_descriptors_says_so_to_the_guest";
    if std::env::var_os("MINIVM_TEST_FEW").is_none() {
        let status = std::process::Command::new("sh")
            .args(["-c", r#"ulimit -n 64 && exec "$0" "$@""#])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", NAME])
            .env("MINIVM_TEST_FEW", "1")
            .stdout(std::process::Stdio::null())
            .status();
        return assert!(status.unwrap().success());
    }
    let place = tempdir().unwrap();
    tree(place.path(), &["file", ".git/config"]);
    fs::hard_link(place.path().join("file"), place.path().join("again")).unwrap();
    fs::hard_link(
        place.path().join(".git/config"),
        place.path().join("config"),
    )
    .unwrap();
    let client = Client::of(place.path());
    let (file, _) = client.lookup(ROOT, ".git").unwrap();
    let mut handles = Vec::new();
    let error = loop {
        match client.call(op::OPENDIR, file, &[Arg::Long(0)]) {
            Ok(reply) => handles.push(crate::client::number(&reply, 0)),
            Err(error) => break error,
        }
        assert!(handles.len() < 64);
    };
    assert_eq!(error, Errno::MFILE);
    // The other names of files aren't known yet, and can't be looked up.
    client.release((file, handles.pop().unwrap())).unwrap();
    assert_eq!(
        client.create("config", RDWR, 0o644).map(drop),
        Err(Errno::MFILE)
    );
    for handle in handles {
        client.release((file, handle)).unwrap();
    }
    assert_eq!(
        client.create("config", RDWR, 0o644).map(drop),
        Err(Errno::ROFS)
    );
    client.create("again", RDWR, 0o644).unwrap();
}
