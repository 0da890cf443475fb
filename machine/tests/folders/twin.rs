//! A folder behind the server and a real one stay alike, whatever is done to both.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tempfile::tempdir;

use crate::client::{APPEND, Client, EXCHANGE, EXCL, NOREPLACE, RDONLY, WRONLY};

/// Something that is done, by paths.
#[derive(Clone, Debug)]
enum Step {
    Put(String, Vec<u8>),
    CreateNew(String, u32),
    Append(String, Vec<u8>),
    WriteAt(String, u16, Vec<u8>),
    Truncate(String, u16),
    Mkdir(String, u32),
    Symlink(String, String),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, u32),
    Chmod(String, u32),
    Times(String, u32),
    Read(String),
    Readlink(String),
    List(String),
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..40)
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop::sample::select(vec![0o700_u32, 0o755, 0o711, 0o777]);
    prop_oneof![
        3 => (path(), data()).prop_map(|(path, data)| Step::Put(path, data)),
        1 => (path(), mode.clone()).prop_map(|(path, mode)| Step::CreateNew(path, mode)),
        1 => (path(), data()).prop_map(|(path, data)| Step::Append(path, data)),
        1 => (path(), any::<u16>(), data()).prop_map(|(path, at, data)| Step::WriteAt(path, at, data)),
        1 => (path(), any::<u16>()).prop_map(|(path, size)| Step::Truncate(path, size)),
        3 => (path(), mode.clone()).prop_map(|(path, mode)| Step::Mkdir(path, mode)),
        1 => (path(), path()).prop_map(|(path, target)| Step::Symlink(path, target)),
        2 => (path(), path()).prop_map(|(old, new)| Step::Link(old, new)),
        2 => path().prop_map(Step::Unlink),
        1 => path().prop_map(Step::Rmdir),
        4 => (path(), path(), 0..3_u32).prop_map(|(old, new, flags)| Step::Rename(old, new, flags)),
        1 => (path(), mode).prop_map(|(path, mode)| Step::Chmod(path, mode)),
        1 => (path(), any::<u32>()).prop_map(|(path, time)| Step::Times(path, time)),
        2 => path().prop_map(Step::Read),
        1 => path().prop_map(Step::Readlink),
        1 => path().prop_map(Step::List),
    ]
}

/// What comes of a step: bytes, or an error's number.
type Outcome = Result<Vec<u8>, i32>;

fn by_server(client: &Client, step: &Step) -> Outcome {
    let write = |path: &str, flags: u32, at: u64, data: &[u8]| {
        let open = client.open(path, WRONLY)?;
        let written = client.write(open, at, data, flags);
        client.release(open)?;
        written.map(|_| Vec::new())
    };
    let both = |old: &str, new: &str| {
        client
            .check_folder(old)
            .and_then(|()| client.check_folder(new))
    };
    let done = match step {
        Step::Put(path, data) => client.put(path, data).map(|()| Vec::new()),
        Step::CreateNew(path, mode) => client.create(path, WRONLY | EXCL, *mode).and_then(|at| {
            client.release(at)?;
            Ok(Vec::new())
        }),
        Step::Append(path, data) => write(path, APPEND, 0, data),
        Step::WriteAt(path, at, data) => write(path, 0, (*at).into(), data),
        // As open(2) and ftruncate(2): a link isn't opened.
        Step::Truncate(path, size) => client.open(path, WRONLY).and_then(|at| {
            client.setattr(at.0, 8, (*size).into(), (0, 0), 0)?;
            client.release(at)?;
            Ok(Vec::new())
        }),
        Step::Mkdir(path, mode) => client.mkdir(path, *mode).map(|_| Vec::new()),
        Step::Symlink(path, target) => client.symlink(path, target.as_bytes()).map(|_| Vec::new()),
        // The kernel looks the new name up first.
        Step::Link(old, new) => both(old, new)
            .and_then(|()| client.find(old))
            .and_then(|_| match client.find(new) {
                Ok(_) => Err(Errno::EXIST),
                Err(_) => client.link(old, new),
            })
            .map(|_| Vec::new()),
        Step::Unlink(path) => client.unlink(path).map(|()| Vec::new()),
        Step::Rmdir(path) => client.rmdir(path).map(|()| Vec::new()),
        Step::Rename(old, new, flags) => both(old, new)
            .and_then(|()| client.rename(old, new, *flags))
            .map(|()| Vec::new()),
        Step::Chmod(path, mode) => client.chmod(path, *mode).map(|_| Vec::new()),
        Step::Times(path, time) => client.utimes(path, ((*time).into(), 5)).map(|_| Vec::new()),
        Step::Read(path) => client.open(path, RDONLY).and_then(|at| {
            let data = client.read(at, 0, 1 << 17);
            client.release(at)?;
            data
        }),
        Step::Readlink(path) => client.readlink(path),
        Step::List(path) => client
            .names(path, true)
            .map(|names| names.join("/").into_bytes()),
    };
    done.map_err(Errno::raw_os_error)
}

/// Checks that all parts of a path but the last are folders, since the server follows no links.
fn parents(root: &Path, path: &str) -> io::Result<()> {
    let parts: Vec<&str> = path.split('/').collect();
    for end in 1..parts.len() {
        let found = fs::symlink_metadata(root.join(parts[..end].join("/")))?;
        if !found.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
    }
    Ok(())
}

fn on_host(root: &Path, step: &Step) -> Outcome {
    let open = |path: &str, options: &mut OpenOptions| -> io::Result<File> {
        parents(root, path)?;
        let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let file = options.custom_flags(no_follow).open(root.join(path))?;
        match file.metadata()?.is_dir() {
            true => Err(Errno::ISDIR.into()),
            false => Ok(file),
        }
    };
    let both = |old: &str, new: &str| -> io::Result<()> {
        parents(root, old)?;
        parents(root, new)
    };
    let done = (|| -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match step {
            Step::Put(path, data) => {
                let mut options = OpenOptions::new();
                let options = options.write(true).create(true).truncate(true).mode(0o644);
                open(path, options)?.write_all(data)?;
            }
            Step::CreateNew(path, mode) => {
                parents(root, path)?;
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(*mode)
                    .open(root.join(path))?;
                fs::set_permissions(root.join(path), Permissions::from_mode(*mode))?;
            }
            Step::Append(path, data) => {
                open(path, OpenOptions::new().append(true))?.write_all(data)?
            }
            Step::WriteAt(path, at, data) => {
                open(path, OpenOptions::new().write(true))?.write_all_at(data, (*at).into())?;
            }
            Step::Truncate(path, size) => {
                open(path, OpenOptions::new().write(true))?.set_len((*size).into())?
            }
            Step::Mkdir(path, mode) => {
                parents(root, path)?;
                fs::create_dir(root.join(path))?;
                fs::set_permissions(root.join(path), Permissions::from_mode(*mode))?;
            }
            Step::Symlink(path, target) => {
                parents(root, path)?;
                symlink(target, root.join(path))?;
            }
            Step::Link(old, new) => {
                both(old, new)?;
                fs::symlink_metadata(root.join(old))?;
                fs::hard_link(root.join(old), root.join(new))?;
            }
            Step::Unlink(path) => {
                parents(root, path)?;
                fs::remove_file(root.join(path))?;
            }
            Step::Rmdir(path) => {
                parents(root, path)?;
                fs::remove_dir(root.join(path))?;
            }
            Step::Rename(old, new, flags) => {
                both(old, new)?;
                let flags = match *flags {
                    NOREPLACE => RenameFlags::NOREPLACE,
                    EXCHANGE => RenameFlags::EXCHANGE,
                    _ => RenameFlags::empty(),
                };
                renameat_with(CWD, root.join(old), CWD, root.join(new), flags)?;
            }
            Step::Chmod(path, mode) => {
                parents(root, path)?;
                if fs::symlink_metadata(root.join(path))?.is_symlink() {
                    return Err(Errno::OPNOTSUPP.into());
                }
                fs::set_permissions(root.join(path), Permissions::from_mode(*mode))?;
            }
            Step::Times(path, time) => {
                parents(root, path)?;
                let time = SystemTime::UNIX_EPOCH + Duration::new((*time).into(), 5);
                let seconds = time
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default();
                let times = rustix::fs::Timestamps {
                    last_access: rustix::fs::Timespec {
                        tv_sec: 0,
                        tv_nsec: rustix::fs::UTIME_OMIT,
                    },
                    last_modification: rustix::fs::Timespec {
                        tv_sec: seconds.as_secs().cast_signed(),
                        tv_nsec: seconds.subsec_nanos().into(),
                    },
                };
                rustix::fs::utimensat(
                    CWD,
                    root.join(path),
                    &times,
                    rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                )?;
            }
            Step::Read(path) => {
                io::Read::read_to_end(&mut open(path, OpenOptions::new().read(true))?, &mut bytes)?;
            }
            Step::Readlink(path) => {
                parents(root, path)?;
                bytes = fs::read_link(root.join(path))?
                    .into_os_string()
                    .into_encoded_bytes();
            }
            Step::List(path) => {
                parents(root, path)?;
                if !fs::symlink_metadata(root.join(path))?.is_dir() {
                    return Err(Errno::NOTDIR.into());
                }
                let entries = fs::read_dir(root.join(path))?;
                let names =
                    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
                let mut names = names.collect::<io::Result<Vec<_>>>()?;
                names.sort();
                bytes = names.join("/").into_bytes();
            }
        }
        Ok(bytes)
    })();
    done.map_err(|error| error.raw_os_error().unwrap_or(0))
}

/// Describes all that is in a folder: kinds, modes, links, contents, and times that were set.
fn describe(root: &Path, path: &Path, into: &mut Vec<String>) {
    let mut entries: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for entry in entries {
        let found = fs::symlink_metadata(&entry).unwrap();
        let name = entry.strip_prefix(root).unwrap().display().to_string();
        let content = match found.file_type() {
            kind if kind.is_symlink() => format!("{:?}", fs::read_link(&entry).unwrap()),
            kind if kind.is_file() => format!("{} {:?}", found.nlink(), fs::read(&entry).unwrap()),
            _ => String::new(),
        };
        let time = if found.mtime_nsec() == 5 {
            found.mtime()
        } else {
            0
        };
        into.push(format!("{name} {:o} {time} {content}", found.mode()));
        if found.is_dir() {
            describe(root, &entry, into);
        }
    }
}

fn described(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    describe(root, root, &mut lines);
    lines
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: minivm_tests::stress::count(150, 5000),
        max_shrink_iters: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_served_folder_and_a_real_one_stay_alike(steps in proptest::collection::vec(step(), 1..60)) {
        let (served, real) = (tempdir().unwrap(), tempdir().unwrap());
        let client = Client::of(served.path());
        for (number, step) in steps.iter().enumerate() {
            let (here, there) = (by_server(&client, step), on_host(real.path(), step));
            prop_assert_eq!(here, there, "step {}: {:?}", number, step);
        }
        prop_assert_eq!(described(served.path()), described(real.path()));
    }
}
