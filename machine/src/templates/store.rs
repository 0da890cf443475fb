//! The templates' folder: listing, locking and removing templates, and their records.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minivm_image::io_error::failed;
use minivm_image::publish::{Folder, Lock, tree};
use serde::{Deserialize, Serialize};

use super::error::NAME_MAX;
use super::{Error, Recipe, Templates, lab, recipe};
use crate::template::Rings;

/// The name of the file with a template's [`Record`].
pub(super) const RECORD: &str = "template.json";

/// A template in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name; a key, if the template is automatic.
    pub name: String,
    /// The recipe that it was made from; `None` where that can't be read.
    pub recipe: Option<Recipe>,
    /// Whether its machine is in a lab.
    pub lab: bool,
    /// Bytes that it takes on the disk.
    pub size: u64,
    /// When it was last opened, or was made.
    pub used: Option<SystemTime>,
}

impl Listed {
    /// Makes the row of a template that a kept lab has ([`lab::kept`]).
    pub fn of_kept_lab((name, recipe): (String, Recipe)) -> Listed {
        Listed {
            name,
            recipe: Some(recipe),
            lab: true,
            size: 0,
            used: None,
        }
    }

    /// Returns the files of the cache that it can't do without, where a user has named it: what a lab makes it of, and the image that its
    /// guest maps. Without a name it is made again.
    pub fn needs(&self) -> Vec<PathBuf> {
        let recipe = self.recipe.as_ref().filter(|_| !self.is_unnamed());
        let needed = recipe.map(|recipe| {
            let archive = self.lab.then_some(&recipe.machine.initramfs);
            archive.into_iter().chain(&recipe.machine.image).cloned()
        });
        needed.into_iter().flatten().collect()
    }

    /// Returns whether the template is automatic: made by a run, not named by a user.
    pub(crate) fn is_unnamed(&self) -> bool {
        recipe::is_key(&self.name)
    }
}

/// The content of `template.json`.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) recipe: Recipe,
    pub(super) made: SystemTime,
    pub(super) saved: Option<Ready>,
}

/// What resuming a saved machine takes beside its snapshot.
#[derive(Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) rings: Rings,
}

impl Templates {
    /// Lists all templates, by name.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where the folder can't be read.
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

    /// Removes a template and ends its lab, if it has one; returns how many bytes it took. Machines that run keep what they need of it.
    ///
    /// # Errors
    ///
    /// [`Error::Name`] and [`Error::Missing`] where there is no such template; [`Error::Busy`] where another process makes or removes
    /// it; [`Error::File`] where its files can't be removed.
    pub fn remove(&self, name: &str) -> Result<u64, Error> {
        check_name(name)?;
        let folder = self.folder.join(name);
        if !folder.exists() {
            // An automatic template in a lab has no folder here.
            let ended = recipe::is_key(name) && lab::stop_one(name, &self.cache).unwrap_or(false);
            return ended.then_some(0).ok_or(Error::Missing(name.to_owned()));
        }
        let lock = self.lock(name)?;
        let entry = self.entry(name);
        if let Ok(Some(Record {
            recipe,
            saved: None,
            ..
        })) = read_record(name, &folder)
        {
            // The lab stays where commands use it. Without its kernel the template has no key, and no lab.
            let _ = recipe.key().map(|key| lab::stop_one(&key, &self.cache));
        }
        if !folder.exists() {
            return Err(Error::Missing(name.to_owned()));
        }
        Ok(entry.remove(lock).whole()?)
    }

    /// Does what [`remove`](Self::remove) does, but returns 0 where the template is busy or already gone.
    pub(super) fn remove_if_free(&self, name: &str) -> Result<u64, Error> {
        match self.remove(name) {
            Err(Error::Busy(_) | Error::Missing(_)) => Ok(0),
            removed => removed,
        }
    }

    /// Removes all automatic templates, and partial ones that a killed process left. Returns how many bytes they took, and an error for
    /// each that can't be removed.
    pub fn clear(&self) -> (u64, Vec<Error>) {
        let mut all = Vec::new();
        match self.list() {
            Ok(listed) => {
                let unnamed = listed.iter().filter(|listed| listed.is_unnamed());
                all.extend(unnamed.map(|listed| self.remove_if_free(&listed.name)));
            }
            Err(error) => all.push(Err(error)),
        }
        for path in Folder::all(&self.folder).unwrap_or_default() {
            let entry = Folder::new(path);
            if entry.partial_path().exists()
                && let Ok(Some(_lock)) = entry.try_lock()
            {
                let removed = tree::remove(&entry.partial_path()).whole();
                all.push(removed.map_err(Error::from));
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

    /// The template's entry of the cache.
    pub(super) fn entry(&self, name: &str) -> Folder {
        Folder::new(self.folder.join(name))
    }

    /// Locks a template's name, so that no other process makes or removes it.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] where another process has it locked.
    pub(super) fn lock(&self, name: &str) -> Result<Lock, Error> {
        let lock = self.entry(name).try_lock()?;
        lock.ok_or_else(|| Error::Busy(name.to_owned()))
    }
}

/// Writes the template's record, and makes sure that all is on the disk.
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
        .map_err(failed("write", &path))?;
    Ok(())
}

/// Reads the record of the template in `folder`; returns `None` where there is no folder.
pub(super) fn read_record(name: &str, folder: &Path) -> Result<Option<Record>, Error> {
    match fs::read(folder.join(RECORD)) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|_| Error::Damaged(name.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.exists() => Ok(None),
        Err(_) => Err(Error::Damaged(name.to_owned())),
    }
}

/// Sets the time of its last use. Where that fails, the template is removed earlier than it should be.
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

/// Returns how many bytes the files of a folder take on the disk, which is less than their sizes: a memory file has holes.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let metadata = entries.filter_map(|entry| entry.metadata().ok());
    metadata.map(|metadata| metadata.blocks() * 512).sum()
}
