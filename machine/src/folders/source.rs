//! The sources of folders: opened by their paths, once, before anything of them is read.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access as Rights, AtFlags, CWD, Mode, OFlags, accessat, openat};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use super::abi::Owner;
use super::host::{Descriptors, Kind, Stat};
use super::mount::Mount;
use super::rules::{self, Rules};
use super::{Access, Error, Folder, git};

/// The open sources of a server's folders.
pub(super) struct Sources {
    pub(super) descriptors: Descriptors,
    pub(super) sources: Vec<Source>,
}

/// An open folder or file.
pub(super) struct Source {
    pub(super) root: OwnedFd,
    /// Its path on the host, without links.
    place: PathBuf,
    pub(super) is_file: bool,
    /// The user and group that this process is.
    user: (u32, u32),
}

impl Sources {
    /// Opens the sources of folders.
    ///
    /// # Errors
    ///
    /// If one can't be opened, or is neither a folder nor a file.
    pub(super) fn open(folders: &[Folder]) -> Result<Self, Error> {
        if folders.len() > usize::from(u16::MAX) + 1 {
            return Err(Error::TooMany(folders.len()));
        }
        let descriptors = Descriptors::open().map_err(Error::Proc)?;
        let sources = folders
            .iter()
            .map(|folder| Source::open(folder, &descriptors));
        Ok(Sources {
            sources: sources.collect::<Result<_, _>>()?,
            descriptors,
        })
    }
}

impl Source {
    fn open(folder: &Folder, descriptors: &Descriptors) -> Result<Self, Error> {
        let (root, kind) = open(folder)?;
        Ok(Source {
            place: descriptors.path(&root).map_err(failed(folder))?,
            root,
            is_file: kind == Kind::File,
            user: (geteuid().as_raw(), getegid().as_raw()),
        })
    }

    /// Makes what a guest mounts of it.
    ///
    /// # Errors
    ///
    /// If a pattern isn't valid.
    pub(super) fn mount(
        self,
        folder: &Folder,
        descriptors: &Arc<Descriptors>,
    ) -> Result<Mount, Error> {
        check_place(folder, &self.place)?;
        let mut protect = folder.protect.clone();
        if !self.is_file && rules::is_about_git(&protect) {
            protect.extend(git::redirected(descriptors, &self.root, &self.place));
        }
        let rules = rules_of(folder, &protect)?;
        Mount::new(
            Arc::clone(descriptors),
            self.root,
            Owner::new(self.user, folder.owner),
            folder.access,
            rules,
            &folder.limits,
        )
        .map_err(failed(folder))
    }
}

/// Checks that a folder can be shared.
///
/// # Errors
///
/// If it can't be opened or read, is neither a folder nor a file, or has a pattern that isn't valid.
pub(super) fn check(folder: &Folder) -> Result<(), Error> {
    let (_, kind) = open(folder)?;
    if let Ok(place) = folder.source.canonicalize() {
        check_place(folder, &place)?;
    }
    let rights = match kind {
        Kind::Folder => Rights::READ_OK | Rights::EXEC_OK,
        _ => Rights::READ_OK,
    };
    accessat(CWD, &folder.source, rights, AtFlags::EACCESS).map_err(failed(folder))?;
    rules_of(folder, &folder.protect).map(drop)
}

/// Opens a folder's source, and returns it with its kind.
fn open(folder: &Folder) -> Result<(OwnedFd, Kind), Error> {
    let path = &folder.source;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = openat(CWD, path, flags, Mode::empty()).map_err(failed(folder))?;
    match Stat::of(&root).map_err(failed(folder))?.kind() {
        kind @ (Kind::File | Kind::Folder) => Ok((root, kind)),
        _ => Err(Error::Kind(path.clone())),
    }
}

/// Checks that a folder that may be changed isn't a part of what it is protected from.
///
/// # Errors
///
/// If it is.
fn check_place(folder: &Folder, place: &Path) -> Result<(), Error> {
    let minds = folder.access == Access::ReadWrite && rules::is_about_git(&folder.protect);
    match minds && rules::is_run(place) {
        true => Err(Error::IsRun(folder.source.clone())),
        false => Ok(()),
    }
}

fn rules_of(folder: &Folder, protect: &[String]) -> Result<Rules, Error> {
    Rules::new(&folder.hide, protect).map_err(|error| Error::Pattern {
        path: folder.source.clone(),
        error,
    })
}

/// Returns the error of a folder that can't be opened.
fn failed(folder: &Folder) -> impl FnOnce(Errno) -> Error {
    let path = folder.source.clone();
    |error| Error::Open {
        path,
        error: error.into(),
    }
}
