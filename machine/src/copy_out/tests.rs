//! What is written, and where, whatever comes: in this process.

use super::fill::DEPTH_MAX;
use super::*;
use crate::unpack_into::CHUNK;
use minivm_guest::channel::COPIED;
use minivm_guest::newc::{Archive, Attributes, Node};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

/// Unpacks what `fill` puts into an archive to `to` in a new folder.
fn unpacked(
    to: &str,
    prepare: impl FnOnce(&Path),
    fill: impl FnOnce(&mut Archive<&mut Vec<u8>>),
) -> (tempfile::TempDir, io::Result<Vec<String>>) {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let mut bytes = Vec::new();
    let mut archive = Archive::new(&mut bytes);
    fill(&mut archive);
    archive.finish().unwrap();
    let files = Files {
        from: "/work/out".into(),
        to: folder.path().join(to),
    };
    let result = unpack(&*bytes, &files, &mut Budget::default(), &|| false);
    (folder, result)
}

fn file(archive: &mut Archive<&mut Vec<u8>>, name: &str, mode: u32, data: &str) {
    let size = data.len() as u64;
    archive
        .file(name, Attributes::new(mode), size, data.as_bytes())
        .unwrap();
}

#[test]
fn a_file_is_called_as_asked_or_goes_into_a_folder_that_is_there() {
    let (folder, result) = unpacked("new", |_| {}, |archive| file(archive, COPIED, 0o4751, "x"));
    assert_eq!(result.unwrap(), Vec::<String>::new());
    let metadata = fs::metadata(folder.path().join("new")).unwrap();
    assert_eq!(
        metadata.permissions().mode() & 0o7777,
        0o751,
        "no set-user-ID"
    );
    let (folder, result) = unpacked(
        "there",
        |folder| fs::create_dir(folder.join("there")).unwrap(),
        |archive| file(archive, COPIED, 0o644, "y"),
    );
    result.unwrap();
    assert_eq!(fs::read(folder.path().join("there/out")).unwrap(), b"y");
}

#[test]
fn folders_keep_their_modes_even_when_they_are_closed() {
    let (folder, result) = unpacked(
        "new",
        |_| {},
        |archive| {
            archive.directory(COPIED, Attributes::new(0o555)).unwrap();
            archive
                .directory("copied/a", Attributes::new(0o750))
                .unwrap();
            file(archive, "copied/a/b", 0o600, "deep");
            archive
                .symlink("copied/l", "a/b", Attributes::new(0o777))
                .unwrap();
        },
    );
    assert_eq!(result.unwrap(), Vec::<String>::new());
    let mode = |name: &str| {
        let metadata = fs::metadata(folder.path().join(name)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(
        (mode("new"), mode("new/a")),
        (0o755, 0o750),
        "the owner can always clean up"
    );
    assert_eq!(fs::read(folder.path().join("new/l")).unwrap(), b"deep");
}

#[test]
fn links_that_may_lead_out_and_devices_are_left_out_and_told() {
    let links = [
        ("copied/d/l", ".."),
        ("copied/d/m", "l/.."),
        ("copied/abs", "/etc"),
        ("copied/up", ".."),
        ("copied/far", "a/../../.."),
    ];
    let (folder, result) = unpacked(
        "new",
        |_| {},
        |archive| {
            archive.directory(COPIED, Attributes::new(0o755)).unwrap();
            archive
                .directory("copied/d", Attributes::new(0o755))
                .unwrap();
            for (name, to) in links {
                archive.symlink(name, to, Attributes::new(0o777)).unwrap();
            }
            archive
                .node("copied/pipe", Node::Fifo, Attributes::new(0o644))
                .unwrap();
        },
    );
    let left_out = result.unwrap();
    assert_eq!(left_out.len(), 5, "{left_out:?}");
    let new = folder.path().join("new");
    assert_eq!(fs::read_dir(&new).unwrap().count(), 1);
    assert_eq!(fs::read_link(new.join("d/l")).unwrap(), Path::new(".."));
    assert_eq!(fs::read_dir(new.join("d")).unwrap().count(), 1);
}

#[test]
fn nothing_beside_the_target_is_touched() {
    type Fill = fn(&mut Archive<&mut Vec<u8>>);
    let attacks: [Fill; 4] = [
        // The root is a link to a sibling.
        |archive| {
            archive
                .symlink(COPIED, "sibling", Attributes::new(0o777))
                .unwrap();
            file(archive, "copied/victim", 0o755, "gone");
        },
        // A chain of links, each of which looks harmless.
        |archive| {
            archive.directory(COPIED, Attributes::new(0o755)).unwrap();
            archive
                .directory("copied/d", Attributes::new(0o755))
                .unwrap();
            archive
                .symlink("copied/d/l", "..", Attributes::new(0o777))
                .unwrap();
            archive
                .symlink("copied/d/m", "l/..", Attributes::new(0o777))
                .unwrap();
            file(archive, "copied/d/m/sibling/victim", 0o644, "gone");
        },
        // Another archive's name.
        |archive| {
            archive.directory(COPIED, Attributes::new(0o755)).unwrap();
            file(archive, "sibling/victim", 0o644, "gone");
        },
        // A file with children.
        |archive| {
            file(archive, COPIED, 0o644, "x");
            file(archive, "copied/victim", 0o644, "gone");
        },
    ];
    for (number, attack) in attacks.into_iter().enumerate() {
        let (folder, result) = unpacked(
            "new",
            |folder| {
                fs::create_dir(folder.join("sibling")).unwrap();
                fs::write(folder.join("sibling/victim"), "safe").unwrap();
            },
            attack,
        );
        assert!(result.is_err(), "attack {number}");
        let victim = folder.path().join("sibling/victim");
        assert_eq!(fs::read(victim).unwrap(), b"safe", "attack {number}");
    }
}

#[test]
fn nothing_is_written_through_links_that_are_there() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "safe").unwrap();
    for link in ["new/out", "new/out/d"] {
        let (_folder, result) = unpacked(
            "new",
            |folder| {
                fs::create_dir_all(folder.join(link).parent().unwrap()).unwrap();
                symlink(outside.path(), folder.join(link)).unwrap();
            },
            |archive| {
                archive.directory(COPIED, Attributes::new(0o755)).unwrap();
                archive
                    .directory("copied/d", Attributes::new(0o755))
                    .unwrap();
                file(archive, "copied/d/victim", 0o644, "mine");
            },
        );
        // The first stands for the whole folder and can't be used, the second gives way to a folder.
        assert_eq!(result.is_err(), link == "new/out");
        assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"safe");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }
}

/// What is unpacked of an archive with this of a budget, and what then is left of that.
fn unpacked_within(
    mut budget: Budget,
    is_over: &dyn Fn() -> bool,
    fill: impl FnOnce(&mut Archive<&mut Vec<u8>>),
) -> (tempfile::TempDir, io::Result<Vec<String>>, Budget) {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    let mut archive = Archive::new(&mut bytes);
    archive.directory(COPIED, Attributes::new(0o755)).unwrap();
    fill(&mut archive);
    archive.finish().unwrap();
    let files = Files {
        from: "/work/out".into(),
        to: folder.path().join("new"),
    };
    let result = unpack(&*bytes, &files, &mut budget, is_over);
    (folder, result, budget)
}

fn told(result: io::Result<Vec<String>>) -> String {
    result.unwrap_err().to_string()
}

/// A chain of folders, so many below the first one.
fn chain(archive: &mut Archive<&mut Vec<u8>>, length: usize) -> String {
    let mut name = COPIED.to_owned();
    for _ in 0..length {
        name.push_str("/a");
        archive.directory(&name, Attributes::new(0o755)).unwrap();
    }
    name
}

#[test]
fn folders_are_so_deep_and_no_deeper() {
    let deep = |length| {
        unpacked_within(Budget::default(), &|| false, |archive| {
            let name = chain(archive, length);
            for number in 0..400 {
                file(archive, &format!("{name}/{number}"), 0o644, "");
            }
        })
    };
    let (folder, result, budget) = deep(DEPTH_MAX - 1);
    result.unwrap();
    assert_eq!(budget.whole, DEPTH_MAX - 1 + 400);
    let bottom = folder.path().join("new").join("a/".repeat(DEPTH_MAX - 1));
    assert_eq!(fs::read_dir(bottom).unwrap().count(), 400);
    let (_folder, result, _) = deep(1900);
    let told = told(result);
    assert!(told.len() < 400, "{told}");
    assert!(
        told.contains("more than 128 folders are in one another"),
        "{told}"
    );
}

#[test]
fn files_and_their_names_are_limited() {
    let within = |entries, names| {
        let budget = Budget {
            entries,
            names,
            whole: 0,
        };
        unpacked_within(budget, &|| false, |archive| {
            for number in 0..7 {
                file(archive, &format!("copied/{number}"), 0o644, "");
            }
            archive
                .symlink("copied/link", "0000000000", Attributes::new(0o777))
                .unwrap();
        })
    };
    let names = "copied".len() + 7 * "copied/0".len() + "copied/link".len() + 10;
    let (_folder, result, budget) = within(9, names);
    result.unwrap();
    assert_eq!((budget.entries, budget.names), (0, 0), "each was counted");
    for (entries, names) in [(8, names), (9, names - 1)] {
        let (folder, result, budget) = within(entries, names);
        let told = told(result);
        assert!(told.contains("make an archive of them"), "{told}");
        assert_eq!(budget.whole, 7);
        assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 7);
    }
}

#[test]
fn files_come_in_their_folders_order() {
    let (_folder, result, _) = unpacked_within(Budget::default(), &|| false, |archive| {
        chain(archive, 2);
        archive
            .directory("copied/b", Attributes::new(0o755))
            .unwrap();
        file(archive, "copied/a/late", 0o644, "");
    });
    let told = told(result);
    assert!(
        told.ends_with("new/a/late: it comes without its folder"),
        "{told}"
    );
}

#[test]
fn an_end_comes_between_two_files_and_within_one() {
    // It is asked before each file and folder, and before each piece of a file.
    for (ends_at, whole) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1), (5, 1)] {
        let asked = std::cell::Cell::new(0);
        let is_over = || asked.replace(asked.get() + 1) >= ends_at;
        let (folder, result, budget) = unpacked_within(Budget::default(), &is_over, |archive| {
            file(archive, "copied/a", 0o644, "");
            file(archive, "copied/b", 0o644, &"x".repeat(CHUNK + 1));
        });
        assert!(
            result.is_err() && budget.whole == whole,
            "{ends_at}: {budget:?}"
        );
        let new = folder.path().join("new");
        let names = fs::read_dir(&new).unwrap();
        assert_eq!(names.count(), whole, "{ends_at}: what isn't whole is gone");
        assert_eq!(new.metadata().unwrap().permissions().mode() & 0o777, 0o755);
    }
}

#[test]
fn what_was_there_stays_until_a_file_is_whole() {
    for (to, name) in [("out", COPIED), (".", "copied/out")] {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("out");
        fs::write(&there, "old").unwrap();
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        if name != COPIED {
            archive.directory(COPIED, Attributes::new(0o755)).unwrap();
        }
        file(&mut archive, name, 0o644, "new and long");
        archive.finish().unwrap();
        let end = bytes.windows(4).position(|bytes| bytes == b"long").unwrap();
        let files = Files {
            from: "/".into(),
            to: folder.path().join(to),
        };
        let mut budget = Budget::default();
        let result = unpack(&bytes[..end], &files, &mut budget, &|| false);
        assert!(told(result).ends_with("the guest did not send all of it"));
        assert_eq!(fs::read(&there).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        unpack(&*bytes, &files, &mut budget, &|| false).unwrap();
        assert_eq!(fs::read(&there).unwrap(), b"new and long");
    }
}

#[test]
fn a_pipe_that_stays_full_keeps_nothing_from_being_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let reader = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
    let mut bytes = Vec::new();
    let mut archive = Archive::new(&mut bytes);
    file(&mut archive, COPIED, 0o644, &"x".repeat(10 * CHUNK));
    archive.finish().unwrap();
    let files = Files {
        from: "/".into(),
        to: path,
    };
    // More often than there are pieces.
    let asked = std::cell::Cell::new(0);
    let is_over = || asked.replace(asked.get() + 1) > 12;
    let result = unpack(&*bytes, &files, &mut Budget::default(), &is_over);
    assert_eq!(told(result), "it was cut off");
    let mut first = [0; 10];
    assert_eq!(rustix::io::read(&reader, &mut first), Ok(10));
}

#[test]
fn times_are_kept() {
    let at = |mtime| Attributes {
        mtime,
        ..Attributes::new(0o755)
    };
    let (folder, result) = unpacked(
        "new",
        |_| {},
        |archive| {
            archive.directory(COPIED, at(1)).unwrap();
            archive.directory("copied/d", at(2)).unwrap();
            archive.file("copied/d/f", at(3), 1, &b"x"[..]).unwrap();
            archive.symlink("copied/d/l", "f", at(4)).unwrap();
        },
    );
    result.unwrap();
    for (name, time) in [("", 1), ("d", 2), ("d/f", 3), ("d/l", 4)] {
        let path = folder.path().join("new").join(name);
        assert_eq!(path.symlink_metadata().unwrap().mtime(), time, "{name}");
    }
    let one = |archive: &mut Archive<&mut Vec<u8>>| {
        archive.file(COPIED, at(5), 1, &b"x"[..]).unwrap();
    };
    let (folder, result) = unpacked("new", |_| {}, one);
    result.unwrap();
    assert_eq!(folder.path().join("new").metadata().unwrap().mtime(), 5);
}

#[test]
fn what_is_no_file_is_not_replaced_by_one() {
    let pipe = |path: PathBuf| {
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    };
    let (folder, result) = unpacked(
        "new",
        |folder| drop(UnixListener::bind(folder.join("new")).unwrap()),
        |archive| file(archive, COPIED, 0o644, "x"),
    );
    assert_eq!(told(result), "it is a socket");
    let is_pipe = |path: PathBuf| {
        let mode = path.symlink_metadata().unwrap().mode();
        FileType::from_raw_mode(mode) == FileType::Fifo
    };
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let (folder, result) = unpacked(
        "new",
        |folder| {
            fs::create_dir_all(folder.join("new/out")).unwrap();
            pipe(folder.join("new/out/pipe"));
        },
        |archive| {
            archive.directory(COPIED, Attributes::new(0o755)).unwrap();
            file(archive, "copied/other", 0o644, "x");
            file(archive, "copied/pipe", 0o644, "x");
        },
    );
    let left_out = result.unwrap();
    assert!(
        left_out[0].ends_with("pipe: a pipe is in its place"),
        "{left_out:?}"
    );
    assert!(is_pipe(folder.path().join("new/out/pipe")));
    assert!(folder.path().join("new/out/other").exists());
}

#[test]
fn the_users_link_is_followed_also_to_a_file_that_is_not_there_yet() {
    let (folder, result) = unpacked(
        "new",
        |folder| {
            fs::create_dir(folder.join("deep")).unwrap();
            fs::write(folder.join("deep/file"), "old").unwrap();
            symlink("deep/file", folder.join("new")).unwrap();
        },
        |archive| file(archive, COPIED, 0o644, "mine"),
    );
    result.unwrap();
    let link = folder.path().join("new").symlink_metadata().unwrap();
    assert!(link.is_symlink());
    assert_eq!(fs::read(folder.path().join("deep/file")).unwrap(), b"mine");
    let (folder, result) = unpacked(
        "new",
        |folder| symlink("nowhere", folder.join("new")).unwrap(),
        |archive| file(archive, COPIED, 0o644, "mine"),
    );
    result.unwrap();
    assert!(folder.path().join("new").is_symlink());
    assert_eq!(fs::read(folder.path().join("nowhere")).unwrap(), b"mine");
}

#[test]
fn a_link_in_the_place_of_a_folders_file_is_replaced() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "safe").unwrap();
    let (folder, result) = unpacked(
        "new",
        |folder| {
            fs::create_dir_all(folder.join("new/out")).unwrap();
            symlink(&victim, folder.join("new/out/file")).unwrap();
        },
        |archive| {
            archive.directory(COPIED, Attributes::new(0o755)).unwrap();
            file(archive, "copied/file", 0o644, "mine");
        },
    );
    result.unwrap();
    assert_eq!(
        fs::read(folder.path().join("new/out/file")).unwrap(),
        b"mine"
    );
    assert_eq!(fs::read(&victim).unwrap(), b"safe");
}
