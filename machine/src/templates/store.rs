//! The templates' folder: what is in it, under which lock it changes, and what goes.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::error::{NAME_MAX, failed};
use super::{Error, Recipe, Templates, lab, recipe};
use crate::images;
use crate::template::Rings;

/// The file that says what a template was made from.
pub(super) const RECORD: &str = "template.json";

/// What a list shows of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What it was made from; `None` where that can't be read.
    pub recipe: Option<Recipe>,
    /// Whether it lives in a lab.
    pub lab: bool,
    /// Bytes it takes on the disk.
    pub size: u64,
    /// When a run last went on from it, or when it was made.
    pub used: Option<SystemTime>,
}

impl Listed {
    /// Whether nobody has named it.
    pub(crate) fn is_unnamed(&self) -> bool {
        recipe::is_key(&self.name)
    }
}

/// What `template.json` holds.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) recipe: Recipe,
    pub(super) made: SystemTime,
    pub(super) saved: Option<Ready>,
}

/// What has to be known of a saved machine beside its snapshot.
#[derive(Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) rings: Rings,
}

impl Templates {
    /// All that are there, by name.
    ///
    /// # Errors
    ///
    /// Where the folder can't be read.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("read", &self.folder))?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed("read", &self.folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| check_name(name).is_ok()) else {
                continue;
            };
            let used = fs::metadata(path.join(RECORD)).and_then(|record| record.modified());
            let record = read_record(name, &path).ok().flatten();
            all.push(Listed {
                name: name.to_owned(),
                lab: record.as_ref().is_some_and(|record| record.saved.is_none()),
                recipe: record.map(|record| record.recipe),
                size: size(&path),
                used: used.ok(),
            });
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// Removes one; says how many bytes it took. Machines that go on from it keep what they need.
    ///
    /// # Errors
    ///
    /// Where there is none, or it can't be removed.
    pub fn remove(&self, name: &str) -> Result<u64, Error> {
        check_name(name)?;
        let folder = self.folder.join(name);
        if !folder.exists() {
            // One that nobody has named may live in a lab alone.
            let ended = recipe::is_key(name) && lab::stop_one(name, &self.cache).unwrap_or(false);
            return ended.then_some(0).ok_or(Error::Missing(name.to_owned()));
        }
        let _lock = self.lock(name)?;
        if let Ok(Some(Record {
            recipe,
            saved: None,
            ..
        })) = read_record(name, &folder)
        {
            // Others may use its lab; those boot their machines then. Without its kernel it has no key, and no lab.
            let _ = recipe.key().map(|key| lab::stop_one(&key, &self.cache));
        }
        let partial = folder.with_extension("partial");
        remove(&partial)?;
        let freed = size(&folder);
        // Under its own name it is whole, also if we are killed now.
        match fs::rename(&folder, &partial) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Missing(name.to_owned()));
            }
            renamed => renamed.map_err(failed("remove", &folder))?,
        }
        remove(&partial)?;
        Ok(freed)
    }

    /// The same where somebody else may be at it, or has done it: nothing is removed then.
    pub(super) fn remove_if_free(&self, name: &str) -> Result<u64, Error> {
        match self.remove(name) {
            Err(Error::Busy(_) | Error::Missing(_)) => Ok(0),
            removed => removed,
        }
    }

    /// Removes those that nobody has named, and what was left of those that were never whole; says how many bytes they took,
    /// and what can't be removed, which doesn't keep the rest.
    pub fn clear(&self) -> (u64, Vec<Error>) {
        let mut all = Vec::new();
        match self.list() {
            Ok(listed) => {
                let unnamed = listed.iter().filter(|listed| listed.is_unnamed());
                all.extend(unnamed.map(|listed| self.remove_if_free(&listed.name)));
            }
            Err(error) => all.push(Err(error)),
        }
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.file_stem().and_then(|name| name.to_str());
            let partial = path
                .extension()
                .is_some_and(|extension| extension == "partial");
            if let (Some(name), true) = (name, partial)
                && let Ok(_lock) = self.lock(name)
            {
                let size = size(&path);
                all.push(remove(&path).map(|()| size));
            }
        }
        let (mut freed, mut left) = (0, Vec::new());
        for removed in all {
            match removed {
                Ok(bytes) => freed += bytes,
                Err(error) => left.push(error),
            }
        }
        (freed, left)
    }

    /// Keeps others from making or removing it.
    pub(super) fn lock(&self, name: &str) -> Result<Lock, Error> {
        private_folder(&self.folder)?;
        let path = self.folder.join(name).with_extension("lock");
        let mut options = File::options();
        options.read(true).write(true).create(true).mode(0o600);
        // Its file stays: it is empty, and a name that is locked and removed at the same time is locked by two.
        let file = options.open(&path).map_err(failed("open", &path))?;
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => Err(Error::Busy(name.to_owned())),
            Err(fs::TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
            Ok(()) => Ok(Lock(file)),
        }
    }
}

/// A template's lock.
pub(super) struct Lock(File);

impl Drop for Lock {
    /// Unlocks it. Closing alone wouldn't always: a process that another thread has forked just now has the file open too, until
    /// it executes its program.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Writes down what it is.
pub(super) fn write(recipe: &Recipe, saved: Option<Ready>, folder: &Path) -> Result<(), Error> {
    let record = Record {
        recipe: recipe.clone(),
        made: SystemTime::now(),
        saved,
    };
    let path = folder.join(RECORD);
    let text = serde_json::to_vec_pretty(&record)
        .map_err(io::Error::from)
        .map_err(failed("write", &path))?;
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()
    });
    written
        .and_then(|()| File::open(folder)?.sync_all())
        .map_err(failed("write", &path))
}

/// What the template in the folder was made from; `None` where there is no folder.
pub(super) fn read_record(name: &str, folder: &Path) -> Result<Option<Record>, Error> {
    match fs::read(folder.join(RECORD)) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|_| Error::Damaged(name.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.exists() => Ok(None),
        Err(_) => Err(Error::Damaged(name.to_owned())),
    }
}

/// Notes that it was used. Where that can't be, it goes earlier than it should.
pub(super) fn touch(record: &Path) {
    let now = fs::FileTimes::new().set_modified(SystemTime::now());
    let _ = File::open(record).and_then(|file| file.set_times(now));
}

pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match (1..=NAME_MAX).contains(&name.len()) && name.chars().all(plain) {
        true => Ok(()),
        false => Err(Error::Name(name.to_owned())),
    }
}

/// Bytes that the files of a folder take on the disk: a memory file has holes.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let metadata = entries.filter_map(|entry| entry.metadata().ok());
    metadata.map(|metadata| metadata.blocks() * 512).sum()
}

pub(super) fn private_folder(folder: &Path) -> Result<(), Error> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(failed("create", folder))
}

pub(super) fn remove(folder: &Path) -> Result<(), Error> {
    match images::remove_folder(folder) {
        Err(images::Error::File { path, source, .. }) => Err(failed("remove", &path)(source)),
        _ => Ok(()),
    }
}
