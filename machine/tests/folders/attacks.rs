//! Ways out, each tried by requests that a guest's own kernel would never send.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use minivm_machine::folders::{Access, Folder, Limits};
use minivm_tests::stress::{self, Random};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tempfile::{TempDir, tempdir};

use crate::client::{Arg, Client, EXCHANGE, RDONLY, RDWR, ROOT, WRONLY, number, op, tree};

/// A folder `shared` beside a file that must neither be read nor changed.
fn beside_a_secret() -> (TempDir, Client) {
    let place = tempdir().unwrap();
    tree(
        place.path(),
        &[
            "secret",
            "outside/secret",
            "shared/inside/file",
            "shared/other/file",
        ],
    );
    let client = Client::of(&place.path().join("shared"));
    (place, client)
}

#[track_caller]
fn assert_kept(place: &Path) {
    assert_eq!(fs::read(place.join("secret")).unwrap(), b"secret");
    assert_eq!(
        fs::read(place.join("outside/secret")).unwrap(),
        b"outside/secret"
    );
    let names = |path: &str| fs::read_dir(place.join(path)).unwrap().count();
    assert_eq!((names(""), names("outside")), (3, 1));
}

#[test]
fn a_name_is_never_a_path() {
    let (place, client) = beside_a_secret();
    let absolute = place.path().join("escaped");
    let absolute = absolute.to_str().unwrap().as_bytes();
    let file = client.find("inside/file").unwrap();
    let inside = client.find("inside").unwrap();
    let names = [
        b"" as &[u8],
        b".",
        b"..",
        b"/",
        b"a/b",
        b"../escaped",
        b"../secret",
        b"inside/file",
        b"/etc/passwd",
        absolute,
    ];
    for name in names {
        for node in [ROOT, inside] {
            let new = Arg::Text(name);
            let zeros = |len: usize| Arg::Bytes(&[0; 16][..len]);
            let requests: Vec<(u32, Vec<Arg<'_>>)> = vec![
                (op::LOOKUP, vec![new]),
                (op::SYMLINK, vec![new, Arg::Text(b"target")]),
                (op::MKNOD, vec![Arg::Word(0o100_644), zeros(12), new]),
                (op::MKDIR, vec![Arg::Word(0o755), zeros(4), new]),
                (
                    op::CREATE,
                    vec![Arg::Word(RDWR), Arg::Word(0o644), zeros(8), new],
                ),
                (op::UNLINK, vec![new]),
                (op::RMDIR, vec![new]),
                (op::LINK, vec![Arg::Long(file), new]),
                (op::RENAME, vec![Arg::Long(inside), Arg::Text(b"file"), new]),
                (op::RENAME, vec![Arg::Long(inside), new, Arg::Text(b"file")]),
                (
                    op::RENAME2,
                    vec![Arg::Long(ROOT), Arg::Long(2), new, Arg::Text(b"inside")],
                ),
            ];
            for (opcode, args) in requests {
                let error = client.call(opcode, node, &args);
                assert_eq!(error, Err(Errno::INVAL), "{opcode} {}", name.escape_ascii());
            }
        }
    }
    let long = [b'x'; 256];
    assert_eq!(client.lookup(ROOT, long), Err(Errno::NAMETOOLONG));
    assert_kept(place.path());
}

#[test]
fn links_lead_nowhere() {
    let (place, client) = beside_a_secret();
    let secret = place.path().join("secret");
    let long = vec![b'x'; 4095];
    let targets: [&[u8]; 9] = [
        b"..",
        b"../secret",
        b"/",
        b"/etc/passwd",
        b"/proc/self/root",
        b"inside",
        b"missing",
        secret.to_str().unwrap().as_bytes(),
        &long,
    ];
    for target in targets {
        let link = client.symlink("link", target).unwrap();
        assert_eq!(client.readlink("link").unwrap(), target);
        for name in ["secret", "passwd", "file", "etc"] {
            assert_eq!(client.lookup(link, name), Err(Errno::NOTDIR));
            assert_eq!(
                client.mkdir(&format!("link/{name}"), 0o755),
                Err(Errno::NOTDIR)
            );
            assert_eq!(client.unlink(&format!("link/{name}")), Err(Errno::NOTDIR));
            assert_eq!(
                client.rename("inside/file", &format!("link/{name}"), 0),
                Err(Errno::NOTDIR)
            );
        }
        assert_eq!(client.open("link", RDONLY), Err(Errno::LOOP));
        assert_eq!(client.create("link", WRONLY, 0o644), Err(Errno::LOOP));
        assert_eq!(
            client.call(op::OPENDIR, link, &[Arg::Long(0)]),
            Err(Errno::NOTDIR)
        );
        assert_eq!(client.chmod("link", 0o777), Err(Errno::OPNOTSUPP));
        assert_eq!(client.truncate("link", 0), Err(Errno::INVAL));
        // Its own times, and another name of its own.
        assert_eq!(
            client.utimes("link", (1, 0)).unwrap().mode & 0o170_000,
            0o120_000
        );
        client.link("link", "again").unwrap();
        assert_eq!(client.readlink("again").unwrap(), target);
        client.unlink("again").unwrap();
        client.unlink("link").unwrap();
    }
    assert_eq!(client.symlink("link", b""), Err(Errno::NOENT));
    assert_eq!(
        client.symlink("link", &[b'x'; 4096]),
        Err(Errno::NAMETOOLONG)
    );
    assert_ne!(
        fs::metadata(&secret).unwrap().modified().unwrap(),
        std::time::UNIX_EPOCH
    );
    assert_kept(place.path());
}

/// Exchanges `inside` and a link to `outside`, again and again, while requests go through `inside`.
fn race(swap: impl Fn() + Send + Sync, client: &Client, place: &Path) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                swap();
            }
        });
        let mut random = Random::default();
        let mut found = 0;
        for _ in 0..stress::count(10_000, 1_000_000) {
            let Ok((node, attr)) = client.lookup(ROOT, "inside") else {
                continue;
            };
            if attr.mode & 0o170_000 == 0o40_000 {
                found += 1;
            }
            assert_eq!(client.lookup(node, "secret").ok(), None);
            match random.below(4) {
                0 => {
                    let args = [
                        Arg::Word(RDWR),
                        Arg::Word(0o644),
                        Arg::Long(0),
                        Arg::Text(b"new"),
                    ];
                    if let Ok(reply) = client.call(op::CREATE, node, &args) {
                        let at = (number(&reply, 0), number(&reply, 128));
                        let _ = client.write(at, 0, b"x", 0);
                        client.release(at).unwrap();
                    }
                }
                1 => drop(client.call(op::UNLINK, node, &[Arg::Text(b"new")])),
                2 => drop(client.call(
                    op::MKDIR,
                    node,
                    &[Arg::Word(0o700), Arg::Word(0), Arg::Text(b"d")],
                )),
                _ => drop(client.call(op::RMDIR, node, &[Arg::Text(b"d")])),
            }
            if let Ok((file, _)) = client.lookup(node, "file") {
                if let Ok(handle) = client.open_node(file, RDONLY) {
                    assert_eq!(client.read((file, handle), 0, 100).unwrap(), b"inside/file");
                    client.release((file, handle)).unwrap();
                }
                let _ = client.setattr(file, 1, 0, (0, 0), 0o640);
            }
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(found > 10, "the folder was there {found} times");
    });
    assert_kept(place);
}

fn for_a_race() -> (TempDir, Client) {
    let (place, client) = beside_a_secret();
    fs::write(place.path().join("shared/inside/file"), "inside/file").unwrap();
    symlink("../outside", place.path().join("shared/link")).unwrap();
    // Where a step through the link leads to the right name.
    (place, client)
}

#[test]
fn a_link_swapped_for_a_folder_by_the_host_leads_nowhere() {
    let (place, client) = for_a_race();
    let shared = place.path().join("shared");
    let swap = || {
        renameat_with(
            CWD,
            shared.join("inside"),
            CWD,
            shared.join("link"),
            RenameFlags::EXCHANGE,
        )
        .unwrap()
    };
    race(swap, &client, place.path());
}

#[test]
fn a_link_swapped_for_a_folder_by_the_guest_leads_nowhere() {
    let (place, client) = for_a_race();
    let swapper = client.clone();
    race(
        move || swapper.rename("inside", "link", EXCHANGE).unwrap(),
        &client,
        place.path(),
    );
}

#[test]
fn a_file_swapped_for_a_link_leads_nowhere() {
    let place = tempdir().unwrap();
    tree(
        place.path(),
        &["secret", "shared/file", "shared/link->../secret"],
    );
    let shared = place.path().join("shared");
    let client = Client::of(&shared);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let (file, link) = (shared.join("file"), shared.join("link"));
                renameat_with(CWD, file, CWD, link, RenameFlags::EXCHANGE).unwrap();
            }
        });
        for _ in 0..stress::count(10_000, 300_000) {
            let Ok((node, _)) = client.lookup(ROOT, "file") else {
                continue;
            };
            let _ = client.setattr(node, 1 | 32, 0, (1, 1), 0o604);
            let _ = client.setattr(node, 8, 3, (0, 0), 0);
            if let Ok(handle) = client.open_node(node, RDWR) {
                client.write((node, handle), 0, b"changed", 0).unwrap();
                client.release((node, handle)).unwrap();
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read(place.path().join("secret")).unwrap(), b"secret");
    let changed = fs::metadata(place.path().join("secret")).unwrap();
    assert_ne!(
        std::os::unix::fs::PermissionsExt::mode(&changed.permissions()) & 0o777,
        0o604
    );
}

#[test]
fn a_folder_that_the_host_moves_out_is_left() {
    let (place, client) = beside_a_secret();
    let inside = client.find("inside").unwrap();
    let file = client.find("inside/file").unwrap();
    fs::rename(
        place.path().join("shared/inside"),
        place.path().join("outside/inside"),
    )
    .unwrap();
    assert_eq!(client.lookup(inside, "file"), Err(Errno::STALE));
    assert_eq!(client.open_node(file, RDONLY), Err(Errno::STALE));
    assert_eq!(
        client.call(op::UNLINK, inside, &[Arg::Text(b"file")]),
        Err(Errno::STALE)
    );
    assert_eq!(
        fs::read(place.path().join("outside/inside/file")).unwrap(),
        b"shared/inside/file"
    );
}

#[test]
fn another_file_system_is_not_entered() {
    let client = Client::new(&Folder::new("/", Access::ReadOnly));
    for name in ["proc", "sys", "dev"] {
        let is_mounted = fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .contains(&format!(" /{name} "));
        if is_mounted {
            assert_eq!(client.lookup(ROOT, name), Err(Errno::XDEV));
        }
    }
    assert!(client.names("", true).unwrap().contains(&"proc".to_owned()));
}

#[test]
fn a_guest_has_what_it_may_and_no_more() {
    let place = tempdir().unwrap();
    for number in 0..100 {
        fs::write(place.path().join(number.to_string()), "").unwrap();
    }
    let mut folder = Folder::new(place.path(), Access::ReadWrite);
    folder.limits = Limits {
        nodes: 51,
        open: 20,
        ..Limits::default()
    };
    let client = Client::new(&folder);
    let found: Vec<_> = (0..100)
        .map(|number| client.lookup(ROOT, number.to_string()))
        .collect();
    assert_eq!(found.iter().filter(|found| found.is_ok()).count(), 50);
    assert_eq!(found[99], Err(Errno::NFILE));
    // A listing goes on without nodes.
    assert_eq!(client.list("", true, 4096).unwrap().len(), 100);
    let node = found[0].unwrap().0;
    let opened: Vec<_> = (0..100_000)
        .map(|_| client.open_node(node, RDONLY))
        .collect();
    assert_eq!(opened.iter().filter(|opened| opened.is_ok()).count(), 20);
    assert_eq!(
        client.call(op::OPENDIR, ROOT, &[Arg::Long(0)]),
        Err(Errno::NFILE)
    );
    client.release((node, opened[0].unwrap())).unwrap();
    client.open_node(node, RDONLY).unwrap();
    // What is forgotten makes room.
    client.server.answer(
        0,
        &crate::client::request(op::FORGET, 0, found[1].unwrap().0, &[Arg::Long(1000)]),
        &mut Vec::new(),
    );
    client.lookup(ROOT, "99").unwrap();
}

#[test]
fn lookups_and_lies_about_them_change_nothing_for_others() {
    let (place, client) = beside_a_secret();
    let file = client.find("inside/file").unwrap();
    let handle = client.open_node(file, RDONLY).unwrap();
    for _ in 0..100_000 {
        assert_eq!(client.find("inside/file"), Ok(file));
    }
    let forget = |node: u64, count: u64| {
        let mut reply = vec![1];
        client.server.answer(
            0,
            &crate::client::request(op::FORGET, 1, node, &[Arg::Long(count)]),
            &mut reply,
        );
        assert!(reply.is_empty());
    };
    forget(ROOT, u64::MAX);
    forget(12345, 1);
    // The folder of what is still known.
    forget(client.find("inside").unwrap(), u64::MAX);
    assert_eq!(client.attr(file).map(drop), Ok(()), "it is open");
    client.release((file, handle)).unwrap();
    assert_eq!(client.attr(file), Err(Errno::STALE));
    assert_eq!(client.find("inside/file"), Ok(file));
    let batch = [
        Arg::Long(3),
        Arg::Long(file),
        Arg::Long(u64::MAX),
        Arg::Long(file),
        Arg::Long(1),
    ];
    client.server.answer(
        0,
        &crate::client::request(op::BATCH_FORGET, 1, 0, &batch),
        &mut Vec::new(),
    );
    assert_eq!(client.attr(file), Err(Errno::STALE));
    assert_eq!(client.get("inside/file").unwrap(), b"shared/inside/file");
    assert_kept(place.path());
}

#[test]
fn two_threads_share_a_server() {
    let place = tempdir().unwrap();
    let client = Client::of(place.path());
    thread::scope(|scope| {
        for name in ["a", "b", "c"] {
            let client = client.clone();
            scope.spawn(move || {
                for round in 0..stress::count(300, 10_000) {
                    let folder = format!("{name}{round}");
                    client.mkdir(&folder, 0o755).unwrap();
                    client
                        .put(&format!("{folder}/file"), name.as_bytes())
                        .unwrap();
                    client.rename(&folder, name, 0).unwrap();
                    assert_eq!(
                        client.get(&format!("{name}/file")).unwrap(),
                        name.as_bytes()
                    );
                    client.unlink(&format!("{name}/file")).unwrap();
                    client.rmdir(name).unwrap();
                    client.names("", true).unwrap();
                }
            });
        }
    });
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}
