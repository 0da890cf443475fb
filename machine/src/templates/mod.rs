//! Templates: machines that are saved when they are ready, each under a name, which a run resumes instead of booting.
//!
//! `<cache>/templates/<name>` is a folder with a snapshot of [`minivm_vmm`]'s and `template.json`, which has the recipe. The folder
//! appears whole: it is made as `<name>.partial` and renamed. The process that makes or removes it locks `<name>.lock`, so that a kill
//! leaves at most a partial folder, which no run uses and the next process that makes the template removes.
//!
//! An automatic template, which `minivm run` makes by itself, has its recipe's key as its name: another image, kernel, memory,
//! processor or `minivm` has another key. Only the automatic templates that were used last are kept.
//!
//! ```no_run
//! use minivm_machine::template::ResumeOptions;
//! use minivm_machine::{MachineSpec, Accel, Report, Session};
//! use minivm_machine::templates::{Recipe, Templates};
//!
//! /// Runs a command in a clone of a machine that has been made once.
//! fn run_warm(machine: MachineSpec, session: Session) -> Result<Report, Box<dyn std::error::Error>> {
//!     let cache = minivm_machine::cache::folder().ok_or("there is no cache")?;
//!     let templates = Templates::new(&cache);
//!     let recipe = Recipe {
//!         image: "python:3-slim".into(),
//!         machine,
//!         config: Default::default(),
//!         warm: Some("import json".into()),
//!     };
//!     if templates.open("science")?.is_none() {
//!         templates.create("science", &recipe, &Accel::Kvm)?;
//!     }
//!     let template = templates.open_named("science")?;
//!     Ok(session.run(templates.resume(&template, ResumeOptions::default())?)?)
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

use crate::images::{self, Erofs, ImageCache};
use crate::jail::CpuGroup;
use crate::template::{ResumeOptions, Saved};
use crate::{Accel, Link, Watch};

use background::background;
pub use background::recipe_of_background;
pub use error::Error;
pub use recipe::Recipe;
pub use store::Listed;
use store::{RECORD, Ready, check_name, read_record, touch, write};

/// The argument that makes this program make an automatic template, of the recipe on its stdin.
pub const MAKE_COMMAND: &str = "template-make";

/// The most automatic templates that are kept.
const KEPT: usize = 8;
/// How long another process may take to make a template.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often that is checked.
const POLL: Duration = Duration::from_millis(50);
/// How long after a failure no other process tries to make an automatic template.
const FAILED: Duration = Duration::from_secs(600);

/// The templates in a cache folder.
#[derive(Clone, Debug)]
pub struct Templates {
    cache: PathBuf,
    folder: PathBuf,
}

/// A template that was opened.
pub struct Template {
    /// The recipe that it was made from.
    pub recipe: Recipe,
    /// When it was made.
    pub made: SystemTime,
    /// Its machine, saved on this host; `None` where the machine is in a lab ([`lab`]).
    pub saved: Option<Saved>,
    /// The image that its guest maps, which stays in the cache as long as this value is held.
    mapped: Option<Erofs>,
}

impl Template {
    /// Returns where its machines run.
    pub fn accel(&self) -> Accel {
        match self.saved {
            Some(_) => Accel::Kvm,
            None => Accel::lab("/proc/self/exe"),
        }
    }

    /// Returns the memory of its machine, in bytes, that no command has: what the kernel needs to know of a mapped image's pages.
    pub fn page_structures(&self) -> u64 {
        self.mapped.as_ref().map_or(0, Erofs::page_structures)
    }
}

impl Templates {
    /// Makes the collection of the cache folder `cache`, see [`crate::cache::folder`].
    pub fn new(cache: &Path) -> Self {
        Templates {
            cache: cache.to_owned(),
            folder: cache.join("templates"),
        }
    }

    /// Resumes a machine of the recipe's automatic template, which waits for its request. Where there is no such template, returns
    /// `None` and starts a process in the background that makes one for later runs. A machine on this host's KVM gets the watch.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] or [`Error::Snapshot`] where this host can't restore the machine, [`Error::File`] where the kernel's
    /// metadata can't be read; [`Error::Busy`] where another process removes the same damaged template.
    pub fn start(
        &self,
        recipe: &Recipe,
        accel: &Accel,
        watch: Option<Watch>,
    ) -> Result<Option<Link>, Error> {
        let recipe = &recipe.clone().with_absolute_kernel()?;
        let key = recipe.key()?;
        if let Accel::Lab { .. } = accel {
            return Ok(lab::connect(recipe, &key, &self.cache)?);
        }
        let resumed = self.open(&key).and_then(|template| {
            let options = ResumeOptions {
                console: recipe.machine.console,
                cpu_quota: recipe.machine.cpu_quota,
                watch,
            };
            let resume = |template| self.resume(&template, options);
            template.map(resume).transpose()
        });
        match resumed {
            Ok(None) => {}
            // An automatic template can be made again.
            Err(error) if error.is_of_template() => {
                log::debug!("the automatic template cannot be used: {error}");
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

    /// Opens the automatic template of `recipe`, and makes it if needed; in the lab, starts a lab that has it.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`], [`Error::Snapshot`] or [`Error::File`] where it can't be made; [`Error::Busy`] where another process takes too
    /// long to make it.
    pub fn open_or_create(&self, recipe: &Recipe, accel: &Accel) -> Result<Template, Error> {
        if !accel.is_of_this_architecture() {
            let why = "labs with another processor than this host's keep none";
            return Err(crate::Error::NoTemplate(why.into()).into());
        }
        let recipe = recipe.clone().with_absolute_kernel()?;
        let key = recipe.key()?;
        if let Accel::Lab { .. } = accel {
            let mapped = mapped(&recipe)?;
            lab::connect_or_start(&recipe, &key, &self.cache)?;
            return Ok(Template {
                recipe,
                made: SystemTime::now(),
                saved: None,
                mapped,
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
                // Another process is making it.
                Err(Error::Busy(_)) if began.elapsed() < PATIENCE => thread::sleep(POLL),
                created => {
                    created?;
                    return self.open(&key)?.ok_or(Error::Missing(key));
                }
            }
        }
    }

    /// Resumes a machine of the template, which waits for its request: here, or in the template's lab, which is started if it doesn't
    /// run. A machine there has no console and no watch.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] where this host can't restore the machine or bound it, or the lab has none; [`Error::Image`] where a lab would lack the
    /// image's archive; [`Error::File`] where the kernel's metadata can't be read.
    pub fn resume(&self, template: &Template, options: ResumeOptions) -> Result<Link, Error> {
        Ok(match &template.saved {
            Some(saved) => saved.resume(options)?,
            None if options.cpu_quota.is_some() => {
                return Err(crate::Error::from(CpuGroup::none_in_lab()).into());
            }
            None => {
                let archive = &template.recipe.machine.initramfs;
                // Checked here: a lab that can't be made is kept for a while to report it, see `lab`.
                if let Err(source) = fs::metadata(archive) {
                    return Err(Error::Image(archive.clone(), source));
                }
                let key = template.recipe.key()?;
                lab::connect_or_start(&template.recipe, &key, &self.cache)?
            }
        })
    }

    /// Opens the template of this name; returns `None` where there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] where its record can't be read; [`Error::Snapshot`] where its snapshot is damaged, of another version or not
    /// for this host; [`Error::Image`] or [`Error::Cache`] where the image that its guest maps is gone or can't be opened.
    pub fn open(&self, name: &str) -> Result<Option<Template>, Error> {
        let folder = self.folder.join(name);
        let Some(record) = read_record(name, &folder)? else {
            return Ok(None);
        };
        // First: without it there is a better error than the snapshot's.
        let mapped = mapped(&record.recipe)?;
        let image = record.recipe.machine.image.as_deref();
        let saved = match record.saved {
            None => None,
            Some(Ready { rings }) => match Saved::open(&folder, image, rings) {
                // It was removed just now.
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
            mapped,
        }))
    }

    /// Opens the template that a user named so.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open)'s; [`Error::Name`] where the name isn't valid; [`Error::Missing`] where there is no such template.
    pub fn open_named(&self, name: &str) -> Result<Template, Error> {
        check_name(name)?;
        self.open(name)?
            .ok_or_else(|| Error::Missing(name.to_owned()))
    }

    /// Makes a template of this name.
    ///
    /// # Errors
    ///
    /// [`Error::Name`] and [`Error::Exists`] where the name isn't valid or is taken; [`Error::Busy`] where another process makes or
    /// removes the template; [`Error::Machine`] or [`Error::File`] where it can't be made.
    pub fn create(&self, name: &str, recipe: &Recipe, accel: &Accel) -> Result<(), Error> {
        self.check_free(name)?;
        let recipe = &recipe.clone().with_absolute_kernel()?;
        match self.make(name, recipe, accel)? {
            true => Ok(()),
            false => Err(Error::Exists(name.to_owned())),
        }
    }

    /// Checks that a new template can have this name.
    ///
    /// # Errors
    ///
    /// [`Error::Name`] where the name isn't valid, or is that of an automatic template; [`Error::Exists`] where it is taken.
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

    /// Makes the recipe's automatic template on this host, if it isn't there, and removes those that have not been used for longest.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] or [`Error::File`] where it can't be made; [`Error::Busy`] where another process makes or removes it.
    pub fn create_unnamed(&self, recipe: &Recipe) -> Result<(), Error> {
        let key = recipe.key()?;
        match self.make(&key, recipe, &Accel::Kvm) {
            // The other process may still make it.
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
            // It fails where another process makes or removes that one.
            let _ = self.remove(&old.name);
        }
        ImageCache::new(&self.cache).evict_beside(&key);
        Ok(())
    }

    /// Makes a template; returns `false` where it exists already.
    fn make(&self, name: &str, recipe: &Recipe, accel: &Accel) -> Result<bool, Error> {
        let lock = self.lock(name)?;
        let entry = self.entry(name);
        if entry.path().exists() {
            return Ok(false);
        }
        let _mapped = mapped(recipe)?;
        let partial = entry.begin(&lock)?;
        let saved = self.save(recipe, accel, partial.path())?;
        write(recipe, saved, partial.path())?;
        partial.publish_synced()?;
        Ok(true)
    }

    /// Makes the template's machine and saves it in `folder`, or starts a lab that has the machine.
    fn save(&self, recipe: &Recipe, accel: &Accel, folder: &Path) -> Result<Option<Ready>, Error> {
        match accel {
            Accel::Kvm => {
                let rings = recipe.save(folder)?;
                Ok(Some(Ready { rings }))
            }
            Accel::Lab { .. } => {
                lab::connect_or_start(recipe, &recipe.key()?, &self.cache)?;
                Ok(None)
            }
        }
    }

    /// Returns whether an automatic template could not be made a short while ago.
    fn failed_lately(&self, key: &str) -> bool {
        let failed = fs::metadata(self.failure(key)).and_then(|file| file.modified());
        failed.is_ok_and(|at| at.elapsed().is_ok_and(|since| since < FAILED))
    }

    fn failure(&self, key: &str) -> PathBuf {
        self.folder.join(key).with_extension("failed")
    }
}

/// Holds the image that a recipe's guest maps.
fn mapped(recipe: &Recipe) -> Result<Option<Erofs>, Error> {
    let Some(path) = &recipe.machine.image else {
        return Ok(None);
    };
    let found = images::hold_erofs(path).map_err(|error| Error::Cache(Box::new(error)))?;
    let gone = || Error::Image(path.clone(), rustix::io::Errno::NOENT.into());
    found.map(Some).ok_or_else(gone)
}

#[cfg(test)]
mod tests {
    use minivm_image::{Config, Image, Root};

    use super::*;

    #[test]
    fn a_template_keeps_the_image_that_its_guest_maps_and_is_refused_without() {
        let cache = tempfile::tempdir().unwrap();
        let (templates, images) = (Templates::new(cache.path()), ImageCache::new(cache.path()));
        let root = cache.path().join("root");
        fs::create_dir(&root).unwrap();
        let image = Image {
            identity: "an image".into(),
            config: Config::default(),
            root: Root::Folder(root),
        };
        let path = images.erofs(&image, || {}).unwrap().path;
        let mut recipe = Recipe::example("/kernel".into(), "/a.cpio".into());
        recipe.machine.image = Some(path.clone());
        fs::create_dir_all(templates.folder.join("named")).unwrap();
        write(&recipe, None, &templates.folder.join("named")).unwrap();
        let template = templates.open_named("named").unwrap();
        assert_eq!(template.page_structures(), 1 << 20);
        assert_eq!(
            recipe.machine.command_memory(),
            recipe.machine.memory - (1 << 20)
        );
        images.clear(&[]).unwrap();
        assert!(path.exists(), "it is held");
        drop(template);
        images.clear(&[]).unwrap();
        assert!(!path.exists());
        let error = templates.open_named("named").err().unwrap();
        assert!(matches!(error, Error::Image(..)), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(path.to_str().unwrap()) && text.contains("template rm"),
            "{text}"
        );
    }

    #[test]
    fn a_failure_counts_for_a_while_whichever_way_the_clock_jumps() {
        let cache = tempfile::tempdir().unwrap();
        let templates = Templates::new(cache.path());
        fs::create_dir_all(&templates.folder).unwrap();
        let file = File::create(templates.failure("key")).unwrap();
        let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
        for (at, counts) in [(now, true), (now + day, false), (now - day, false)] {
            file.set_modified(at).unwrap();
            assert_eq!(templates.failed_lately("key"), counts, "{at:?}");
        }
        assert!(!templates.failed_lately("other"));
    }
}
