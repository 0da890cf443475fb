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
mod error;
pub mod lab;
mod recipe;
mod store;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::images::Shelf;
use crate::template::Saved;
use crate::{Link, Place};

use background::background;
pub use background::recipe_of_background;
pub use error::Error;
use error::failed;
pub use recipe::Recipe;
pub use store::Listed;
use store::{RECORD, Ready, check_name, private_folder, read_record, remove, touch, write};

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
        let recipe = &recipe.clone().with_absolute_kernel()?;
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
        let recipe = recipe.clone().with_absolute_kernel()?;
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
        let recipe = &recipe.clone().with_absolute_kernel()?;
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
}
