//! What a guest's programs see is what they would see of a real folder.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use minivm_machine::folders::{Access, Folder, Server};
use minivm_tests::stress;
use rustix::io::Errno;
use rustix::process::{Uid, geteuid};
use rustix::thread::set_thread_res_uid;
use tempfile::tempdir;

use crate::client::Arg::Word;
use crate::client::{
    APPEND, Arg, Client, EXCHANGE, EXCL, NOREPLACE, RDONLY, RDWR, ROOT, TRUNC, WRONLY, fifo,
    number, op, request, tree, word,
};

#[test]
fn a_file_that_the_host_has_changed_is_known_to_be_old_before_it_is_open() {
    let place = tempdir().unwrap();
    let host = place.path().join("file");
    fs::write(&host, "one").unwrap();
    let client = Client::of(place.path());
    let node = client.find("file").unwrap();
    let notice = || {
        let mut reply = Vec::new();
        let open = request(op::OPEN, 77, node, &[Word(RDONLY), Word(0)]);
        let notice = client.server.answer(0, &open, &mut reply);
        assert_eq!((word(&reply, 4), number(&reply, 8)), (0, 77));
        notice
    };
    assert_eq!(notice(), None);
    fs::write(&host, "and two").unwrap();
    let old = notice().unwrap();
    let head = (word(&old, 0) as usize, word(&old, 4), number(&old, 8));
    assert_eq!(head, (old.len(), 2, 0));
    assert_eq!((number(&old, 16), &old[24..]), (node, &[0; 16][..]));
    assert_eq!(notice(), None, "it asks anew");
    fs::write(&host, "and a third time").unwrap();
    assert_eq!(notice(), None, "it has not asked yet");
    assert_eq!(client.stat("file").unwrap().size, 16);
    assert_eq!(notice(), None);
    // What it does itself it knows.
    let at = client.open("file", RDWR).unwrap();
    client
        .write(at, 0, b"from the guest, and longer", 0)
        .unwrap();
    assert_eq!(notice(), None);
    client.truncate("file", 1).unwrap();
    assert_eq!(notice(), None);
    fs::set_permissions(&host, Permissions::from_mode(0o600)).unwrap();
    assert!(notice().is_some());
}

#[test]
fn permissions_and_times_are_kept_on_both_sides() {
    let place = tempdir().unwrap();
    let client = Client::of(place.path());
    let at = client.create("script", RDWR | EXCL, 0o755).unwrap();
    assert_eq!(client.write(at, 0, b"#!/bin/sh\n", 0), Ok(10));
    let host = fs::metadata(place.path().join("script")).unwrap();
    assert_eq!((host.mode(), host.len()), (0o100_755, 10));
    client
        .utimes("script", (1_000_000_000, 123_456_789))
        .unwrap();
    let host = fs::metadata(place.path().join("script")).unwrap();
    assert_eq!(
        (host.mtime(), host.mtime_nsec()),
        (1_000_000_000, 123_456_789)
    );
    fs::set_permissions(place.path().join("script"), Permissions::from_mode(0o600)).unwrap();
    let attr = client.stat("script").unwrap();
    assert_eq!(
        (attr.mode, attr.mtime),
        (0o100_600, (1_000_000_000, 123_456_789))
    );
    // Of a file whose mode lets no user read it, too.
    client.chmod("script", 0).unwrap();
    assert_eq!(client.chmod("script", 0o444).unwrap().mode, 0o100_444);
    client.mkdir("folder", 0o777).unwrap();
    assert_eq!(
        fs::metadata(place.path().join("folder")).unwrap().mode(),
        0o40_777
    );
}

#[test]
fn files_belong_to_the_guests_user_or_to_the_overflow_id() {
    let place = tempdir().unwrap();
    tree(place.path(), &["mine", "other"]);
    let mut folder = Folder::new(place.path(), Access::ReadWrite);
    folder.owner = (1000, 1001);
    let is_root = std::os::unix::fs::chown(place.path().join("other"), Some(12), Some(34)).is_ok();
    let client = Client::new(&folder);
    assert_eq!(client.stat("mine").unwrap().owner, (1000, 1001));
    if is_root {
        assert_eq!(client.stat("other").unwrap().owner, (65534, 65534));
    }
    // Both are given away, without an error and an effect.
    let before = fs::metadata(place.path().join("mine")).unwrap().uid();
    client
        .setattr(client.find("mine").unwrap(), 2 | 4, 0, (0, 0), 0)
        .unwrap();
    assert_eq!(
        fs::metadata(place.path().join("mine")).unwrap().uid(),
        before
    );
}

#[test]
fn set_id_bits_neither_come_nor_stay() {
    let place = tempdir().unwrap();
    tree(place.path(), &["tool", "cut", "opened", "folder/"]);
    let mode = |name: &str| fs::metadata(place.path().join(name)).unwrap().mode() & 0o7777;
    for (name, mode) in [
        ("tool", 0o4755),
        ("cut", 0o6755),
        ("opened", 0o4755),
        ("folder", 0o3755),
    ] {
        fs::set_permissions(place.path().join(name), Permissions::from_mode(mode)).unwrap();
    }
    let client = Client::of(place.path());
    assert_eq!(client.stat("tool").unwrap().mode, 0o100_755);
    let at = client.open("tool", WRONLY).unwrap();
    client.write(at, 0, b"other", 0).unwrap();
    client.truncate("cut", 1).unwrap();
    client.open("opened", RDONLY | TRUNC).unwrap();
    assert_eq!(
        (mode("tool"), mode("cut"), mode("opened")),
        (0o755, 0o755, 0o755)
    );
    client.chmod("tool", 0o6711).unwrap();
    client.create("new", WRONLY, 0o4755).unwrap();
    client.mkdir("made", 0o7755).unwrap();
    client.mknod("node", 0o104_755).unwrap();
    assert_eq!(
        (mode("tool"), mode("new"), mode("made"), mode("node")),
        (0o711, 0o755, 0o755, 0o755)
    );
    // What the host has given a folder stays.
    client.chmod("folder", 0o700).unwrap();
    assert_eq!(mode("folder"), 0o3700);
}

#[test]
fn a_file_lives_until_it_is_closed() {
    let place = tempdir().unwrap();
    let client = Client::of(place.path());
    let at = client.create("file", RDWR, 0o644).unwrap();
    client.write(at, 0, b"bytes", 0).unwrap();
    client.unlink("file").unwrap();
    assert_eq!(client.find("file"), Err(Errno::NOENT));
    // The guest's kernel doesn't name the open file for fstat and fchmod.
    let attr = client.attr(at.0).unwrap();
    assert_eq!((attr.size, attr.links), (5, 0));
    client.setattr(at.0, 1, 0, (0, 0), 0o600).unwrap();
    client.setattr(at.0, 8, 3, (0, 0), 0).unwrap();
    assert_eq!(client.read(at, 0, 100).unwrap(), b"byt");
    // As /proc/self/fd in the guest opens it.
    let again = client.open_node(at.0, RDONLY).unwrap();
    assert_eq!(client.read((at.0, again), 1, 100).unwrap(), b"yt");
    client.release((at.0, again)).unwrap();
    client.release(at).unwrap();
    assert_eq!(client.attr(at.0), Err(Errno::STALE));
}

#[test]
fn bytes_go_where_they_belong() {
    let place = tempdir().unwrap();
    let client = Client::of(place.path());
    let at = client.create("file", RDWR, 0o644).unwrap();
    client.write(at, 0, b"0123456789", 0).unwrap();
    client.write(at, 0, b"ab", APPEND).unwrap();
    client.write(at, 2, b"--", 0).unwrap();
    assert_eq!(client.read(at, 0, 100).unwrap(), b"01--456789ab");
    assert_eq!(client.read(at, 100, 100).unwrap(), b"");
    assert_eq!(client.read(at, u64::MAX, 100), Err(Errno::INVAL));
    assert_eq!(client.write(at, u64::MAX - 1, b"1", 0), Err(Errno::INVAL));
    // Of another file, or of none.
    let other = client.create("other", RDWR, 0o644).unwrap();
    assert_eq!(client.read((other.0, at.1), 0, 1), Err(Errno::BADF));
    assert_eq!(client.read((at.0, 12345), 0, 1), Err(Errno::BADF));
    let reads = client.open("file", RDONLY).unwrap();
    assert_eq!(client.write(reads, 0, b"x", 0), Err(Errno::BADF));
    // Behind 4 GiB, with a hole.
    client.write(at, 5 << 30, b"far", 0).unwrap_err();
    let far = client.create("far", RDWR, 0o644).unwrap();
    client.write(far, 3 << 30, b"far", 0).unwrap();
    let seek = |offset: u64, whence: u32| {
        let reply = client.call(
            op::LSEEK,
            far.0,
            &[
                Arg::Long(far.1),
                Arg::Long(offset),
                Arg::Long(whence.into()),
            ],
        );
        reply.map(|reply| number(&reply, 0))
    };
    assert!(seek(0, 3).unwrap() > 1 << 30);
    assert_eq!(seek(0, 4), Ok(0));
    assert_eq!(seek(0, 0), Err(Errno::INVAL));
    client.fallocate(at, 0, 0, 8192).unwrap();
    assert_eq!(client.attr(at.0).unwrap().size, 8192);
    client.fallocate(at, 3, 0, 4096).unwrap();
    assert_eq!(client.read(at, 0, 4).unwrap(), [0; 4]);
    assert_eq!(client.fallocate(at, 1, 0, 1 << 20), Err(Errno::OPNOTSUPP));
    assert_eq!(client.fallocate(at, 0x40, 0, 4096), Err(Errno::OPNOTSUPP));
}

#[test]
fn files_are_made_once() {
    let place = tempdir().unwrap();
    let client = Client::of(place.path());
    client.put("file", b"first").unwrap();
    assert_eq!(
        client.create("file", WRONLY | EXCL, 0o644),
        Err(Errno::EXIST)
    );
    client.create("file", WRONLY, 0o644).unwrap();
    assert_eq!(client.get("file").unwrap(), b"first");
    client.create("file", WRONLY | TRUNC, 0o644).unwrap();
    assert_eq!(client.get("file").unwrap(), b"");
    assert_eq!(client.mkdir("file", 0o755), Err(Errno::EXIST));
    client.mkdir("folder", 0o755).unwrap();
    assert_eq!(client.create("folder", WRONLY, 0o644), Err(Errno::ISDIR));
    assert_eq!(client.rmdir("file"), Err(Errno::NOTDIR));
    assert_eq!(client.unlink("folder"), Err(Errno::ISDIR));
    client.put("folder/x", b"").unwrap();
    assert_eq!(client.rmdir("folder"), Err(Errno::NOTEMPTY));
    for kind in [0o010_000, 0o020_000, 0o060_000, 0o140_000] {
        assert_eq!(client.mknod("node", kind | 0o644), Err(Errno::PERM));
    }
    assert_eq!(client.names("", false).unwrap(), ["file", "folder"]);
}

#[test]
fn names_move() {
    let place = tempdir().unwrap();
    tree(place.path(), &["a/b/file", "c/other", "d/"]);
    let client = Client::of(place.path());
    let file = client.find("a/b/file").unwrap();
    client.rename("a/b", "d/b", 0).unwrap();
    // Below a folder that has moved.
    assert_eq!(client.attr(file).unwrap().size, 8);
    assert_eq!(client.find("d/b/file"), Ok(file));
    assert_eq!(client.rename("d/b", "c", NOREPLACE), Err(Errno::EXIST));
    client.rename("d/b", "c", EXCHANGE).unwrap();
    assert_eq!(client.find("c/file"), Ok(file));
    assert_eq!(client.get("d/b/other").unwrap(), b"c/other");
    assert_eq!(client.rename("d/b", "d/b/below", 0), Err(Errno::INVAL));
    assert_eq!(client.rename("c/file", "c/more", 4), Err(Errno::INVAL));
    client.rename("c/file", "d/b/other", 0).unwrap();
    assert_eq!(client.get("d/b/other").unwrap(), b"a/b/file");
    client.link("d/b/other", "c/again").unwrap();
    assert_eq!(client.attr(file).unwrap().links, 2);
    client.unlink("d/b/other").unwrap();
    assert_eq!(client.attr(file).unwrap().links, 1);
    assert_eq!(client.link("c", "e"), Err(Errno::PERM));
}

#[test]
fn what_moves_is_reached_all_the_while() {
    let place = tempdir().unwrap();
    tree(place.path(), &["a/one", "b/two"]);
    let client = Client::of(place.path());
    let file = client.find("a/one").unwrap();
    let (is_over, swapped) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                client.rename("a", "b", EXCHANGE).unwrap();
                swapped.fetch_add(1, Ordering::Relaxed);
            }
        });
        let swaps = stress::count(2000, 50_000);
        let mut lost = None;
        while swapped.load(Ordering::Relaxed) < swaps && lost.is_none() && !swapper.is_finished() {
            lost = client.setattr(file, 1, 0, (0, 0), 0o644).err();
        }
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(lost, None);
    });
}

#[test]
fn what_the_host_changes_is_seen() {
    let place = tempdir().unwrap();
    tree(place.path(), &["file", "folder/inside"]);
    let client = Client::of(place.path());
    let file = client.find("file").unwrap();
    let inside = client.find("folder/inside").unwrap();
    let old = client.open_node(file, RDONLY).unwrap();
    // An editor's save, while the guest has the old file open.
    fs::write(place.path().join("new"), "saved").unwrap();
    fs::rename(place.path().join("new"), place.path().join("file")).unwrap();
    assert_eq!(client.open_node(file, RDONLY), Err(Errno::STALE));
    client.read((file, old), 0, 1).unwrap();
    assert_ne!(client.find("file"), Ok(file));
    assert_eq!(client.get("file").unwrap(), b"saved");
    fs::rename(place.path().join("folder"), place.path().join("moved")).unwrap();
    assert_eq!(client.attr(inside), Err(Errno::STALE));
    assert_eq!(client.find("moved/inside"), Ok(inside));
    assert_eq!(client.attr(inside).unwrap().size, 13);
    // A number that is used again, which ext4 does at once.
    let old = client.find("moved/inside").unwrap();
    fs::remove_file(place.path().join("moved/inside")).unwrap();
    fs::write(place.path().join("moved/inside"), "x").unwrap();
    assert_ne!(client.find("moved/inside"), Ok(old));
}

#[test]
fn folders_are_listed_while_they_change() {
    let place = tempdir().unwrap();
    let client = Client::of(place.path());
    for number in 0..300 {
        fs::write(place.path().join(format!("stays {number}")), "").unwrap();
        fs::write(place.path().join(format!("goes {number}")), "").unwrap();
    }
    for plus in [false, true] {
        let handle = number(&client.call(op::OPENDIR, ROOT, &[Arg::Long(0)]).unwrap(), 0);
        let mut seen = BTreeSet::new();
        let mut offset = 0;
        let mut rounds = 0;
        loop {
            let entries = client
                .list_from((ROOT, handle), plus, offset, 1024)
                .unwrap();
            let Some(last) = entries.last() else { break };
            offset = last.next;
            for entry in entries
                .iter()
                .filter(|entry| entry.name.starts_with(b"stays"))
            {
                assert!(seen.insert(entry.name.clone()), "twice: {entry:?}");
                assert_eq!((entry.kind, entry.node != 0), (8, plus));
            }
            if rounds < 100 {
                let _ = fs::remove_file(place.path().join(format!("goes {rounds}")));
                fs::write(place.path().join(format!("comes {rounds}")), "").unwrap();
            }
            rounds += 1;
        }
        assert_eq!(seen.len(), 300);
    }
    assert_eq!(
        client.names("", true).unwrap(),
        client.names("", false).unwrap()
    );
}

#[test]
fn odd_names_are_names() {
    let place = tempdir().unwrap();
    let client = Client::of(place.path());
    let long = vec![b'x'; 255];
    for name in [&b"a\nb"[..], b"\xff\xfe", b" ", b"...", b"-", b"*", &long] {
        let args = [
            Arg::Word(0o100_644),
            Arg::Long(0),
            Arg::Word(0),
            Arg::Text(name),
        ];
        client.call(op::MKNOD, ROOT, &args).unwrap();
        client.lookup(ROOT, name).unwrap();
    }
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 7);
    assert_eq!(client.list("", true, 4096).unwrap().len(), 7);
}

#[test]
fn what_is_only_read_stays() {
    let place = tempdir().unwrap();
    tree(place.path(), &["file", "folder/x", "link->file"]);
    let client = Client::new(&Folder::new(place.path(), Access::ReadOnly));
    assert_eq!(client.get("file").unwrap(), b"file");
    assert_eq!(client.readlink("link").unwrap(), b"file");
    let file = client.find("file").unwrap();
    let refused = [
        client.open("file", WRONLY).map(drop),
        client.open("file", RDWR).map(drop),
        client.open("file", RDONLY | TRUNC).map(drop),
        client.create("new", RDONLY, 0o644).map(drop),
        client.mkdir("new", 0o755).map(drop),
        client.mknod("new", 0o644).map(drop),
        client.symlink("new", b"x").map(drop),
        client.link("file", "new").map(drop),
        client.unlink("file"),
        client.rmdir("folder"),
        client.rename("file", "new", 0),
        client.rename("file", "link", EXCHANGE),
        client.chmod("file", 0o777).map(drop),
        client.truncate("file", 0).map(drop),
        client.utimes("file", (1, 1)).map(drop),
        client.call(op::ACCESS, file, &[Arg::Long(2)]).map(drop),
    ];
    assert_eq!(refused, [Err(Errno::ROFS); 16]);
    assert_eq!(
        client.call(op::ACCESS, file, &[Arg::Long(4)]).map(drop),
        Ok(())
    );
    assert_eq!(client.names("", false).unwrap(), ["file", "folder", "link"]);
    // It can be opened as a program opens what may have to be made.
    client.create("file", RDONLY, 0o644).unwrap();
}

#[test]
fn a_single_file_is_served() {
    let place = tempdir().unwrap();
    tree(place.path(), &["file", "other"]);
    let client = Client::of(&place.path().join("file"));
    assert_eq!(client.attr(ROOT).unwrap().mode & 0o170_000, 0o100_000);
    let handle = client.open_node(ROOT, RDWR).unwrap();
    client.write((ROOT, handle), 0, b"!", 0).unwrap();
    assert_eq!(fs::read(place.path().join("file")).unwrap(), b"!ile");
    for name in ["other", "file", "x"] {
        assert_eq!(client.lookup(ROOT, name), Err(Errno::NOTDIR));
    }
    assert_eq!(
        client.call(op::OPENDIR, ROOT, &[Arg::Long(0)]),
        Err(Errno::NOTDIR)
    );
}

#[test]
fn special_files_are_shown_and_not_opened() {
    let place = tempdir().unwrap();
    fifo(&place.path().join("fifo"));
    let _socket = std::os::unix::net::UnixListener::bind(place.path().join("socket")).unwrap();
    let client = Client::of(place.path());
    assert_eq!(client.stat("fifo").unwrap().mode & 0o170_000, 0o010_000);
    for name in ["fifo", "socket"] {
        for flags in [RDONLY, WRONLY, RDWR | TRUNC] {
            assert_eq!(client.open(name, flags).map(drop), Err(Errno::ACCESS));
            assert_eq!(
                client.create(name, flags, 0o644).map(drop),
                Err(Errno::ACCESS)
            );
        }
        assert_eq!(client.chmod(name, 0o777).map(drop), Err(Errno::PERM));
        assert_eq!(client.link(name, "again").map(drop), Err(Errno::PERM));
    }
    client.unlink("fifo").unwrap();
}

#[test]
fn a_source_is_checked_before_it_is_served() {
    let place = tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    for folder in [".", "open", "closed"] {
        fs::create_dir_all(path(folder)).unwrap();
        fs::set_permissions(path(folder), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fifo(&path("open/fifo"));
    fs::write(path("open/file"), "").unwrap();
    fs::write(path("open/secret"), "").unwrap();
    fs::set_permissions(path("open/secret"), fs::Permissions::from_mode(0o0)).unwrap();
    fs::set_permissions(path("closed"), fs::Permissions::from_mode(0o311)).unwrap();
    let check = |source: &str, hide: &[&str]| {
        let mut folder = Folder::new(path(source), Access::ReadWrite);
        folder.hide = hide.iter().map(|&pattern| pattern.into()).collect();
        let check = move || {
            if geteuid().is_root() {
                let user = Uid::from_raw(65534);
                set_thread_res_uid(user, user, user).unwrap();
            }
            folder.check().map_err(|error| error.to_string())
        };
        thread::spawn(check).join().unwrap()
    };
    assert_eq!(check("open", &["*.key"]), Ok(()));
    assert_eq!(check("open/file", &[]), Ok(()));
    for (source, hide, said) in [
        ("closed", "*", "closed: Permission denied"),
        ("open/secret", "*", "secret: Permission denied"),
        ("missing", "*", "missing: No such file"),
        ("open/fifo", "*", "fifo: it is a device"),
        ("open", "", "is not a pattern"),
    ] {
        let error = check(source, &[hide]).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn sources_that_cannot_be_served_are_refused_by_name() {
    let place = tempdir().unwrap();
    let refused = |source: &str, hide: &str| {
        let mut folder = Folder::new(place.path().join(source), Access::ReadWrite);
        folder
            .hide
            .extend((!hide.is_empty()).then(|| hide.to_owned()));
        let error = Server::new(&[folder]).err().unwrap().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    };
    assert!(refused("missing", "").contains("missing: No such file"));
    fifo(&place.path().join("fifo"));
    assert!(refused("fifo", "").contains("fifo: it is a device"));
    assert!(refused("", "[z-a]").contains("[z-a]"));
    assert!(refused("", "# all").contains("is not a pattern"));
}
