//! What is hidden isn't there, and what is protected stays as it is, by every request and every way to it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use minivm_machine::folders::{Access, Folder, Server};
use rustix::io::Errno;
use rustix::process::{Uid, geteuid};
use rustix::thread::set_thread_res_uid;
use tempfile::{TempDir, tempdir};

use crate::client::{
    Arg, Client, EXCHANGE, EXCL, NOREPLACE, RDONLY, RDWR, ROOT, Result, TRUNC, WRONLY, op, tree,
};

fn with(paths: &[&str], hide: &[&str], protect: &[&str]) -> (TempDir, Client) {
    let place = tempdir().unwrap();
    tree(place.path(), paths);
    let client = again(place.path(), hide, protect);
    (place, client)
}

fn again(place: &Path, hide: &[&str], protect: &[&str]) -> Client {
    let mut folder = Folder::new(place, Access::ReadWrite);
    folder.hide = hide.iter().map(|pattern| (*pattern).to_owned()).collect();
    folder
        .protect
        .extend(protect.iter().map(|pattern| (*pattern).to_owned()));
    Client::new(&folder)
}

/// Returns what comes of each request that changes a file, or what has its name.
fn changes(client: &Client, path: &str) -> Vec<Result<()>> {
    vec![
        client.create(path, WRONLY, 0o644).map(drop),
        client.create(path, RDONLY | TRUNC, 0o644).map(drop),
        client.unlink(path),
        client.rename(path, "free", 0),
        client.rename("other", path, 0),
        client.rename("other", path, EXCHANGE),
        client.rename(path, "other", EXCHANGE),
    ]
}

/// The same by a node.
fn changes_of_node(client: &Client, node: u64) -> Vec<Result<()>> {
    vec![
        client.open_node(node, WRONLY).map(drop),
        client.open_node(node, RDWR).map(drop),
        client.open_node(node, RDONLY | TRUNC).map(drop),
        client.setattr(node, 1, 0, (0, 0), 0o777).map(drop),
        client.setattr(node, 8, 0, (0, 0), 0).map(drop),
        client.setattr(node, 32, 0, (1, 1), 0).map(drop),
        client.call(op::ACCESS, node, &[Arg::Long(2)]).map(drop),
        client
            .call(op::LINK, ROOT, &[Arg::Long(node), Arg::Text(b"new name")])
            .map(drop),
    ]
}

#[track_caller]
fn assert_all(results: &[Result<()>], error: Errno) {
    assert!(
        results.iter().all(|result| *result == Err(error)),
        "{results:?}"
    );
}

#[test]
fn hidden_files_are_not_there() {
    let paths = [
        "other",
        "secret.key",
        "folder/secret.key",
        "private/file",
        "deep/private/file",
    ];
    let (place, client) = with(&paths, &["*.key", "private/"], &[]);
    for path in ["secret.key", "folder/secret.key", "private", "deep/private"] {
        assert_eq!(client.find(path), Err(Errno::NOENT));
        assert_all(&changes(&client, path), Errno::NOENT);
        assert_eq!(
            client.create(path, WRONLY | EXCL, 0o644).map(drop),
            Err(Errno::NOENT)
        );
        assert_eq!(client.rename("other", path, NOREPLACE), Err(Errno::NOENT));
        assert_eq!(client.rmdir(path), Err(Errno::NOENT));
        assert_eq!(client.link("other", path), Err(Errno::NOENT));
        assert_eq!(client.symlink(path, b"x"), Err(Errno::NOENT));
        assert_eq!(
            client.mknod(path, 0o644).map(drop),
            client.create(path, WRONLY, 0o644).map(drop)
        );
    }
    assert_eq!(client.mkdir("new.KEY", 0o755), Err(Errno::NOENT));
    for plus in [false, true] {
        assert_eq!(client.names("", plus).unwrap(), ["deep", "folder", "other"]);
        assert_eq!(client.names("folder", plus).unwrap(), [""; 0]);
    }
    assert_eq!(
        fs::read(place.path().join("secret.key")).unwrap(),
        b"secret.key"
    );
    // A folder with hidden files stays where it is, and isn't removed.
    assert_eq!(client.rename("deep", "elsewhere", 0), Err(Errno::ROFS));
    assert_eq!(client.rename("folder", "deep", EXCHANGE), Err(Errno::ROFS));
    assert_eq!(client.rmdir("folder"), Err(Errno::NOTEMPTY));
    // A link by a hidden name, which may stand for a folder.
    assert_eq!(client.symlink("private", b"deep"), Err(Errno::NOENT));
}

#[test]
fn patterns_of_several_parts_hold_whatever_moves() {
    let (_place, client) = with(&["a/b/c", "x/y/c", "z/"], &["/a/b/c", "z/y", "/t/y/c"], &[]);
    assert_eq!(client.find("a/b/c"), Err(Errno::NOENT));
    // Out of the pattern's place, and into it.
    assert_eq!(client.rename("a/b", "a/d", 0), Err(Errno::ROFS));
    assert_eq!(client.rename("a", "e", 0), Err(Errno::ROFS));
    assert_eq!(client.rename("x/y", "z/y", 0), Err(Errno::NOENT));
    assert_eq!(client.rename("x", "t", 0), Err(Errno::ROFS));
    assert_eq!(client.rename("x/y", "a/b", EXCHANGE), Err(Errno::ROFS));
    let node = client.find("x/y/c").unwrap();
    assert_eq!(client.rename("x", "a", EXCHANGE), Err(Errno::ROFS));
    client.rename("x/y", "x/b", 0).unwrap();
    assert_eq!(client.rename("x", "a", EXCHANGE), Err(Errno::ROFS));
    assert_eq!(client.attr(node).unwrap().size, 5);
}

#[test]
fn protected_files_are_read_alone() {
    let (place, client) = with(
        &["other", "locked", "folder/locked", "all/of/it"],
        &[],
        &["locked", "all/"],
    );
    for path in ["locked", "folder/locked", "all/of/it"] {
        let node = client.find(path).unwrap();
        assert_eq!(client.get(path).unwrap(), path.as_bytes());
        assert_all(&changes(&client, path), Errno::ROFS);
        assert_all(&changes_of_node(&client, node), Errno::ROFS);
        assert_eq!(fs::read(place.path().join(path)).unwrap(), path.as_bytes());
        // An old handle can read, and no more.
        let handle = client.open_node(node, RDONLY).unwrap();
        assert_eq!(client.write((node, handle), 0, b"x", 0), Err(Errno::BADF));
        assert_eq!(
            client.fallocate((node, handle), 0, 0, 1 << 20),
            Err(Errno::BADF)
        );
        let truncate = [
            Arg::Long(8 | 64),
            Arg::Long(handle),
            Arg::Long(0),
            Arg::Bytes(&[0; 64]),
        ];
        assert_eq!(
            client.call(op::SETATTR, node, &truncate).map(drop),
            Err(Errno::ROFS)
        );
    }
    for path in ["all", "all/of", "folder"] {
        assert_eq!(client.rename(path, "free", 0), Err(Errno::ROFS), "{path}");
    }
    for path in ["all/new", "all/of/new", "locked/new"] {
        let made = [
            client.mkdir(path, 0o755).map(drop),
            client.symlink(path, b"x").map(drop),
            client.put(path, b""),
        ];
        assert!(made.iter().all(Result::is_err), "{made:?}");
    }
    assert_eq!(client.chmod("all", 0o700).map(drop), Err(Errno::ROFS));
    client.chmod("folder", 0o700).unwrap();
    assert_eq!(
        client.names("", false).unwrap(),
        ["all", "folder", "locked", "other"]
    );
}

#[test]
fn other_names_of_a_file_share_its_fate() {
    let place = tempdir().unwrap();
    tree(
        place.path(),
        &["other", "deep/er/locked", "deep/secret.key", "free"],
    );
    fs::hard_link(
        place.path().join("deep/er/locked"),
        place.path().join("second"),
    )
    .unwrap();
    fs::hard_link(
        place.path().join("deep/secret.key"),
        place.path().join("third"),
    )
    .unwrap();
    fs::hard_link(place.path().join("free"), place.path().join("fourth")).unwrap();
    let client = again(place.path(), &["*.key"], &["locked"]);
    let node = client.find("second").unwrap();
    assert_eq!(client.get("second").unwrap(), b"deep/er/locked");
    assert_all(&changes_of_node(&client, node), Errno::ROFS);
    assert_all(&changes(&client, "second"), Errno::ROFS);
    assert_eq!(client.find("third"), Err(Errno::NOENT));
    assert_all(&changes(&client, "third"), Errno::NOENT);
    for plus in [false, true] {
        assert_eq!(
            client.names("", plus).unwrap(),
            ["deep", "fourth", "free", "other", "second"]
        );
    }
    client.put("fourth", b"changed").unwrap();
    assert_eq!(client.get("free").unwrap(), b"changed");
}

#[test]
fn what_the_host_runs_later_is_protected() {
    let paths = [
        "other",
        ".git/HEAD",
        ".git/config",
        ".git/hooks/pre-commit",
        ".git/modules/sub/config",
        ".git/objects/x",
        "sub/.git",
        ".envrc",
        ".vscode/tasks.json",
        ".claude/settings.json",
        "src/x",
        "node_modules/pkg/.vscode/x",
    ];
    let (place, client) = with(&paths, &[], &[]);
    for path in [
        ".git/config",
        ".git/hooks/pre-commit",
        ".git/modules/sub/config",
        "sub/.git",
        ".envrc",
        ".vscode/tasks.json",
    ] {
        assert_all(&changes(&client, path), Errno::ROFS);
        assert_all(
            &changes_of_node(&client, client.find(path).unwrap()),
            Errno::ROFS,
        );
    }
    // A place that is another one for git, or the same where case doesn't count.
    for path in [
        ".git/commondir",
        ".git/config.worktree",
        ".GIT/Hooks",
        "src/.envrc",
        "src/.mcp.json",
        "src/.idea",
        ".husky",
        ".cursor",
    ] {
        if path.starts_with(".GIT") {
            client.mkdir(".GIT", 0o755).unwrap();
            client.mkdir(path, 0o755).unwrap(); // below a folder of its own
            continue;
        }
        let made = [
            client.put(path, b""),
            client.mkdir(path, 0o755).map(drop),
            client.mknod(path, 0o644).map(drop),
            client.symlink(path, b"other").map(drop),
            client.link("other", path).map(drop),
            client.rename("other", path, 0),
        ];
        assert_all(&made, Errno::ROFS);
    }
    for (from, to) in [
        (".git", "x"),
        (".git/hooks", "x"),
        (".git/modules", "x"),
        ("sub", "x"),
        (".vscode", "x"),
    ] {
        assert_eq!(client.rename(from, to, 0), Err(Errno::ROFS), "{from}");
    }
    client.mkdir("x", 0o755).unwrap();
    client.mkdir("x/hooks", 0o755).unwrap();
    assert_eq!(client.rename("x", ".git", EXCHANGE), Err(Errno::ROFS));
    assert_eq!(client.rename("x/hooks", ".git/hooks", 0), Err(Errno::ROFS));
    // What git and npm do.
    client.put(".git/objects/new", b"").unwrap();
    client.put(".git/index.lock", b"").unwrap();
    client.rename(".git/index.lock", ".git/index", 0).unwrap();
    client.put(".git/HEAD", b"ref").unwrap();
    client.rename("src", "lib", 0).unwrap();
    client
        .put("node_modules/pkg/.vscode/x", b"changed")
        .unwrap();
    client
        .rename("node_modules/pkg", "node_modules/old", 0)
        .unwrap();
    assert_eq!(
        fs::read(place.path().join(".git/hooks/pre-commit")).unwrap(),
        b".git/hooks/pre-commit"
    );
}

#[test]
fn git_is_not_sent_to_another_place_for_what_it_runs() {
    let (place, client) = with(
        &[
            ".git/modules/sub/HEAD",
            ".git/modules/a/b/modules/c/HEAD",
            ".git/worktrees/tree/HEAD",
            ".git/worktrees/tree/commondir",
        ],
        &[],
        &[],
    );
    for folder in [
        ".git/modules/sub",
        ".git/modules/a/b/modules/c",
        ".git/worktrees/tree",
    ] {
        for name in ["commondir", "config", "config.worktree", "hooks"] {
            let path = format!("{folder}/{name}");
            assert_eq!(client.put(&path, b"x"), Err(Errno::ROFS), "{path}");
        }
        client.put(&format!("{folder}/HEAD"), b"x").unwrap();
    }
    let of = |source: &str| {
        let folder = Folder::new(place.path().join(source), Access::ReadWrite);
        let checked = folder.check().map_err(|error| error.to_string());
        let served = Server::new(&[folder]).map(drop);
        assert_eq!(served.map_err(|error| error.to_string()), checked);
        checked
    };
    for source in [".git", ".git/modules/sub", ".git/worktrees/tree/HEAD"] {
        let refused = of(source).unwrap_err();
        assert!(refused.contains("to be changed: it is where"), "{refused}");
    }
    assert_eq!(of(""), Ok(()));
    let mut folder = Folder::new(place.path().join(".git"), Access::ReadOnly);
    folder.check().unwrap();
    folder.access = Access::ReadWrite;
    folder.protect.clear();
    folder.check().unwrap();
}

#[test]
fn a_folder_that_cannot_be_entered_closes_no_others() {
    let (place, client) = with(&["listed/inside/file", "file"], &["*.key"], &[]);
    let listed = place.path().join("listed");
    fs::hard_link(place.path().join("file"), place.path().join("other")).unwrap();
    fs::set_permissions(&listed, Permissions::from_mode(0o444)).unwrap();
    let read = std::thread::spawn(move || {
        if geteuid().is_root() {
            let user = Uid::from_raw(65534);
            set_thread_res_uid(user, user, user).unwrap();
        }
        client.get("other")
    });
    assert!(read.join().unwrap().is_ok());
    fs::set_permissions(&listed, Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_repository_of_the_guests_is_its_own_and_reported() {
    let (_place, client) = with(&["src/x", "old/.git/config"], &[], &[]);
    let report = || client.server.repositories(0);
    client.mkdir("new", 0o755).unwrap();
    client.mkdir("new/.git", 0o755).unwrap();
    client.mkdir("new/.git/hooks", 0o755).unwrap();
    client
        .put("new/.git/hooks/pre-commit", b"#!/bin/sh")
        .unwrap();
    client.put("new/.git/config", b"[core]").unwrap();
    client.put("new/.envrc", b"x").unwrap();
    client
        .rename("new/.git/config", "new/.git/config.old", 0)
        .unwrap();
    assert_eq!(report(), [PathBuf::from("new")]);
    client.rename("new", "src/newer", 0).unwrap();
    assert_eq!(report(), [PathBuf::from("src/newer")]);
    // Another one comes to be by an exchange, from either end.
    client.mkdir("swapped", 0o755).unwrap();
    client.mkdir("swapped/.git", 0o755).unwrap();
    client.mkdir("swapped/other", 0o755).unwrap();
    client
        .rename("swapped/.git", "swapped/other", EXCHANGE)
        .unwrap();
    assert_eq!(report(), ["src/newer", "swapped"].map(PathBuf::from));
    // Its settings don't get out of it, as others' place.
    assert_eq!(
        client.rename("src/newer/.envrc", "src/.envrc", 0),
        Err(Errno::ROFS)
    );
    assert_eq!(
        client.rename("src/newer/.git/config.old", "old/.git/config", 0),
        Err(Errno::ROFS)
    );
    assert_eq!(
        client.rename("src/newer/.git", "old/.git", EXCHANGE),
        Err(Errno::ROFS)
    );
    client.mkdir("made", 0o755).unwrap();
    client.rename("made", ".git", 0).unwrap();
    client.put(".git/config", b"x").unwrap();
    client.put("src/.git", b"gitdir: ../made").unwrap();
    let all = [
        PathBuf::from("src/newer"),
        PathBuf::from("swapped"),
        PathBuf::new(),
        PathBuf::from("src"),
    ];
    assert_eq!(report(), all);
    client.unlink(".git/config").unwrap();
    client.rmdir(".git").unwrap();
    let left = ["src/newer", "swapped", "src"].map(PathBuf::from);
    assert_eq!(report(), left);
}

#[test]
fn hooks_elsewhere_are_protected() {
    let place = tempdir().unwrap();
    tree(
        place.path(),
        &[
            "tools/h [1]/pre-push",
            "scripts/check",
            "shared/config",
            "free",
            ".git/hooks/pre-commit->../../scripts/check",
        ],
    );
    let config = "[core]\n\thooksPath = tools/h [1]\n[include]\n\tpath = ../shared/config\n";
    fs::write(place.path().join(".git/config"), config).unwrap();
    let client = again(place.path(), &[], &[]);
    for path in [
        "tools/h [1]/pre-push",
        "scripts/check",
        "shared/config",
        "tools/h [1]/new",
    ] {
        assert_eq!(client.put(path, b"x"), Err(Errno::ROFS), "{path}");
    }
    assert_eq!(client.rename("tools", "x", 0), Err(Errno::ROFS));
    client.put("free", b"x").unwrap();
    client.put("tools/h 1", b"x").unwrap();
}
