//! Templates: machines that are saved when they are ready, each under a name, from which a run goes on instead of booting.
//!
//! `<cache>/templates/<name>` is a folder with a snapshot of [`minivm_vmm`]'s and `template.json`, which says what it was made
//! from. It appears there whole: it is made in `<name>.partial` and renamed. `<name>.lock` is locked by whoever makes or removes
//! it, so that a kill leaves at most a partial one, which nobody uses and the next one who makes it removes.
//!
//! Templates that `minivm run` makes by itself are called by what they were made from ([`Recipe::key`]): another image,
//! kernel, memory, processor or `minivm` has another name. Of these only those are kept that were used last.
//!
//! ```no_run
//! use minivm_machine::{Machine, Place, Report, Session};
//! use minivm_machine::templates::{Recipe, Templates};
//!
//! /// Runs a command in a fork of a machine that has been made once.
//! fn fork(machine: Machine, session: Session) -> Result<Report, Box<dyn std::error::Error>> {
//!     let cache = minivm_machine::cache::folder().ok_or("there is no cache")?;
//!     let templates = Templates::new(&cache);
//!     let recipe = Recipe {
//!         image: "python:3-slim".into(),
//!         machine,
//!         config: Default::default(),
//!         warm: Some("import json".into()),
//!     };
//!     if templates.open("science")?.is_none() {
//!         templates.create("science", &recipe, &Place::Here)?;
//!     }
//!     let template = templates.open_named("science")?;
//!     Ok(session.run(templates.resume(&template, false)?)?)
//! }
//! ```

mod background;
pub mod lab;
mod recipe;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::images::{self, Shelf};
use crate::template::{Rings, Saved};
use crate::{Link, Place};

use background::background;
pub use background::recipe_of_background;
pub use recipe::Recipe;

/// The argument that makes this program make a template that nobody has named, of the recipe on its stdin.
pub const MAKE_COMMAND: &str = "template-make";

/// How many templates are kept that nobody has named.
const KEPT: usize = 8;
/// How long somebody else may take to make a template.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked whether that has been done.
const POLL: Duration = Duration::from_millis(50);
/// How long it is remembered that a template can't be made.
const FAILED: Duration = Duration::from_secs(600);
/// The file that says what a template was made from.
const RECORD: &str = "template.json";
/// The longest name.
const NAME_MAX: usize = 64;

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine can't be made, saved or restored.
    #[error(transparent)]
    Machine(#[from] crate::Error),
    /// The snapshot isn't good, or this host can't go on from it.
    #[error(transparent)]
    Snapshot(#[from] minivm_vmm::Error),
    /// A name that is none.
    #[error(
        "{0:?} is no template's name: it has 1 to {NAME_MAX} letters, digits, `-` and `_`, and isn't 32 hexadecimal digits"
    )]
    Name(String),
    /// The name is taken.
    #[error("there is a template {0} already: `minivm template rm {0}` removes it")]
    Exists(String),
    /// There is no template of that name.
    #[error("there is no template {0}: `minivm template ls` shows those that are there")]
    Missing(String),
    /// Somebody else is at it.
    #[error("the template {0} is being made or removed by another process")]
    Busy(String),
    /// Its record isn't what was written.
    #[error("the template {0} is damaged: `minivm template rm {0}` removes it")]
    Damaged(String),
    /// What it is to be made of in a lab is gone.
    #[error(
        "the archive of the template's image is gone, {}: `minivm template rm` removes the template, and then it can be created again",
        .0.display()
    )]
    Archive(PathBuf, #[source] io::Error),
    /// A file can't be written or read.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// Whether it is about the template itself, and will be the same the next time.
    fn is_of_template(&self) -> bool {
        use minivm_vmm::Error::{File, HostLacks, Snapshot};
        match self {
            Error::Damaged(_) => true,
            Error::Snapshot(error) | Error::Machine(crate::Error::Monitor(error)) => {
                match error {
                    Snapshot { .. } | HostLacks(_) => true,
                    // Not there, or no file at all; too many open files are another matter.
                    File { source, .. } => {
                        matches!(
                            source.kind(),
                            io::ErrorKind::NotFound | io::ErrorKind::Other
                        )
                    }
                    _ => false,
                }
            }
            _ => false,
        }
    }
}

/// Where templates are kept.
#[derive(Clone, Debug)]
pub struct Templates {
    cache: PathBuf,
    folder: PathBuf,
}

/// A template that is there, whole.
pub struct Template {
    /// What it was made from.
    pub recipe: Recipe,
    /// When it was made.
    pub made: SystemTime,
    /// Its machine, saved on this host; `None` where it lives in a lab ([`lab`]).
    pub saved: Option<Saved>,
}

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
struct Record {
    recipe: Recipe,
    made: SystemTime,
    saved: Option<Ready>,
}

/// What has to be known of a saved machine beside its snapshot.
#[derive(Serialize, Deserialize)]
struct Ready {
    rings: Rings,
}

impl Template {
    /// Where its machines run.
    pub fn place(&self) -> Place {
        match self.saved {
            Some(_) => Place::Here,
            None => Place::Lab {
                program: "/proc/self/exe".into(),
            },
        }
    }
}

impl Templates {
    /// In the cache folder `cache`, see [`crate::cache::folder`].
    pub fn new(cache: &Path) -> Self {
        Templates {
            cache: cache.to_owned(),
            folder: cache.join("templates"),
        }
    }

    /// A machine of the recipe that waits for its request, if there is a template of it. If not, one begins to be made in the
    /// background, by a process of this program, and is there for who comes later.
    ///
    /// # Errors
    ///
    /// Where this host can't restore it, or the recipe's kernel can't be looked at.
    pub fn start(&self, recipe: &Recipe, place: &Place) -> Result<Option<Link>, Error> {
        let recipe = &recipe.clone().settled()?;
        let key = recipe.key()?;
        if let Place::Lab { .. } = place {
            return Ok(lab::connect(recipe, &key, &self.cache)?);
        }
        let resumed = self.open(&key).and_then(|template| {
            let resume = |template| self.resume(&template, recipe.machine.console);
            template.map(resume).transpose()
        });
        match resumed {
            Ok(None) => {}
            // Nobody has asked for it by name, and another one can be made.
            Err(error) if error.is_of_template() => {
                log::debug!("the template is of no use: {error}");
                self.remove(&key)?;
            }
            resumed => return resumed,
        }
        if !self.failed_lately(&key)
            && let Err(error) = background(MAKE_COMMAND, recipe)
        {
            log::debug!("cannot make a template for the next run: {error}");
        }
        Ok(None)
    }

    /// The template of this recipe, which nobody has named. It is made where it isn't there; a lab for it is started.
    ///
    /// # Errors
    ///
    /// Where it can't be made.
    pub fn open_or_create(&self, recipe: &Recipe, place: &Place) -> Result<Template, Error> {
        let recipe = recipe.clone().settled()?;
        let key = recipe.key()?;
        if let Place::Lab { .. } = place {
            lab::connect_or_start(&recipe, &key, &self.cache)?;
            return Ok(Template {
                recipe,
                made: SystemTime::now(),
                saved: None,
            });
        }
        let began = Instant::now();
        loop {
            match self.open(&key) {
                Ok(Some(template)) => return Ok(template),
                Err(error) if error.is_of_template() => drop(self.remove_if_free(&key)?),
                opened => drop(opened?),
            }
            match self.create_unnamed(&recipe) {
                // Somebody else is making it.
                Err(Error::Busy(_)) if began.elapsed() < PATIENCE => thread::sleep(POLL),
                created => {
                    created?;
                    return self.open(&key)?.ok_or(Error::Missing(key));
                }
            }
        }
    }

    /// A machine that goes on from the template, waiting for its request: here, or in the template's lab, which is started if
    /// it doesn't run.
    ///
    /// # Errors
    ///
    /// Where this host can't restore it, or there is no lab.
    pub fn resume(&self, template: &Template, console: bool) -> Result<Link, Error> {
        Ok(match &template.saved {
            Some(saved) => saved.resume(console)?,
            None => {
                let archive = &template.recipe.machine.initramfs;
                // The lab would be kept for telling it.
                if let Err(source) = fs::metadata(archive) {
                    return Err(Error::Archive(archive.clone(), source));
                }
                let key = template.recipe.key()?;
                lab::connect_or_start(&template.recipe, &key, &self.cache)?
            }
        })
    }

    /// Opens the template of this name; `None` where there is none.
    ///
    /// # Errors
    ///
    /// Where it is damaged, or of another version.
    pub fn open(&self, name: &str) -> Result<Option<Template>, Error> {
        let folder = self.folder.join(name);
        let Some(record) = read_record(name, &folder)? else {
            return Ok(None);
        };
        let saved = match record.saved {
            None => None,
            Some(Ready { rings }) => match Saved::open(&folder, rings) {
                // Removed in this moment.
                Err(minivm_vmm::Error::File { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && !folder.exists() =>
                {
                    return Ok(None);
                }
                opened => Some(opened?),
            },
        };
        touch(&folder.join(RECORD));
        Ok(Some(Template {
            recipe: record.recipe,
            made: record.made,
            saved,
        }))
    }

    /// Opens one that somebody has named.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open)'s, and where there is none.
    pub fn open_named(&self, name: &str) -> Result<Template, Error> {
        check_name(name)?;
        self.open(name)?
            .ok_or_else(|| Error::Missing(name.to_owned()))
    }

    /// Makes one with a name of its own.
    ///
    /// # Errors
    ///
    /// Where the name is none or taken, or the machine can't be made.
    pub fn create(&self, name: &str, recipe: &Recipe, place: &Place) -> Result<(), Error> {
        self.check_free(name)?;
        let recipe = &recipe.clone().settled()?;
        match self.make(name, recipe, place)? {
            true => Ok(()),
            false => Err(Error::Exists(name.to_owned())),
        }
    }

    /// Looks whether a template can be given this name.
    ///
    /// # Errors
    ///
    /// Where the name is none or taken.
    pub fn check_free(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        if recipe::is_key(name) {
            return Err(Error::Name(name.to_owned()));
        }
        match self.folder.join(name).exists() {
            true => Err(Error::Exists(name.to_owned())),
            false => Ok(()),
        }
    }

    /// Makes one that is called by what it is made from, if it isn't there. Removes those that have not been used for longest.
    ///
    /// # Errors
    ///
    /// Where the machine can't be made, or somebody else is making it.
    pub fn create_unnamed(&self, recipe: &Recipe) -> Result<(), Error> {
        let key = recipe.key()?;
        match self.make(&key, recipe, &Place::Here) {
            // Nobody knows yet whether it can be made.
            Err(error @ Error::Busy(_)) => return Err(error),
            Err(error) => {
                let _ = File::create(self.failure(&key));
                return Err(error);
            }
            Ok(_) => drop(fs::remove_file(self.failure(&key))),
        }
        let mut unnamed: Vec<_> = self.list()?;
        unnamed.retain(|listed| recipe::is_key(&listed.name) && listed.name != key);
        unnamed.sort_by_key(|listed| std::cmp::Reverse(listed.used));
        for old in unnamed.iter().skip(KEPT - 1) {
            // Somebody else may be at it.
            let _ = self.remove(&old.name);
        }
        Shelf::new(&self.cache).evict_beside(&key);
        Ok(())
    }

    /// Whether it was made, or is there already.
    fn make(&self, name: &str, recipe: &Recipe, place: &Place) -> Result<bool, Error> {
        let folder = self.folder.join(name);
        let _lock = self.lock(name)?;
        if folder.exists() {
            return Ok(false);
        }
        let partial = folder.with_extension("partial");
        remove(&partial)?;
        private_folder(&partial)?;
        let made = self
            .save(recipe, place, &partial)
            .and_then(|saved| write(recipe, saved, &partial))
            .and_then(|()| fs::rename(&partial, &folder).map_err(failed("create", &folder)));
        if made.is_err() {
            // It may be large, and nobody goes on from it.
            let _ = remove(&partial);
        }
        made.map(|()| true)
    }

    /// Makes its machine, and saves it, or looks whether it can be had in a lab.
    fn save(&self, recipe: &Recipe, place: &Place, folder: &Path) -> Result<Option<Ready>, Error> {
        match place {
            Place::Here => {
                let rings = recipe.save(folder)?;
                Ok(Some(Ready { rings }))
            }
            Place::Lab { .. } => {
                lab::connect_or_start(recipe, &recipe.key()?, &self.cache)?;
                Ok(None)
            }
        }
    }

    /// Whether it was tried a short while ago, and could not be made.
    fn failed_lately(&self, key: &str) -> bool {
        let failed = fs::metadata(self.failure(key)).and_then(|file| file.modified());
        failed.is_ok_and(|at| at.elapsed().is_ok_and(|since| since < FAILED))
    }

    fn failure(&self, key: &str) -> PathBuf {
        self.folder.join(key).with_extension("failed")
    }

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
    fn remove_if_free(&self, name: &str) -> Result<u64, Error> {
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
    fn lock(&self, name: &str) -> Result<Lock, Error> {
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
struct Lock(File);

impl Drop for Lock {
    /// Unlocks it. Closing alone wouldn't always: a process that another thread has forked just now has the file open too, until
    /// it executes its program.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Writes down what it is.
fn write(recipe: &Recipe, saved: Option<Ready>, folder: &Path) -> Result<(), Error> {
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
fn read_record(name: &str, folder: &Path) -> Result<Option<Record>, Error> {
    match fs::read(folder.join(RECORD)) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|_| Error::Damaged(name.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.exists() => Ok(None),
        Err(_) => Err(Error::Damaged(name.to_owned())),
    }
}

/// Notes that it was used. Where that can't be, it goes earlier than it should.
fn touch(record: &Path) {
    let now = fs::FileTimes::new().set_modified(SystemTime::now());
    let _ = File::open(record).and_then(|file| file.set_times(now));
}

fn check_name(name: &str) -> Result<(), Error> {
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

fn private_folder(folder: &Path) -> Result<(), Error> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(failed("create", folder))
}

fn remove(folder: &Path) -> Result<(), Error> {
    match images::remove_folder(folder) {
        Err(images::Error::File(error)) => Err(failed("remove", &error.path)(error.source)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path,
        source,
    }
}
