//! What sandboxes are made of on this host: a program for inside, the cache, an image, a kernel.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use minivm_image::Image;

use super::{Backend, Chromium, Deno, Error, Gvisor, Microvm, Monty, Sandbox};
use minivm_machine::Place;
use minivm_machine::images::Shelf;
use minivm_machine::kernel;

/// Where sandboxes come from.
#[derive(Clone, Debug)]
pub struct Host {
    /// The program `minivm-worker`, which some sandboxes run inside. It lies beside `minivm`: see [`Host::worker_beside`].
    pub worker: PathBuf,
    /// The cache's folder, see [`minivm_machine::cache::folder`].
    pub cache: PathBuf,
    /// The image of those sandboxes that need one.
    pub image: Option<Arc<Image>>,
    /// The microVM's kernel; [`minivm_machine::kernel::find`]'s, where there is none.
    pub kernel: Option<PathBuf>,
    /// Where the microVM runs.
    pub place: Place,
}

impl Host {
    /// Where the worker is that belongs to this `minivm`.
    pub fn worker_beside(minivm: &Path) -> PathBuf {
        minivm.with_file_name("minivm-worker")
    }

    /// Opens one of the sandboxes. What it is made of is made first, where it isn't there: an archive or a folder of the image.
    ///
    /// # Errors
    ///
    /// Where the image can't be used, or something isn't there: [`Error::Unavailable`].
    pub fn open(&self, backend: Backend) -> Result<Box<dyn Sandbox>, Error> {
        match backend {
            Backend::Microvm => Ok(Box::new(self.microvm()?)),
            Backend::Gvisor => Ok(Box::new(self.gvisor()?)),
            Backend::Monty => Ok(Box::new(Monty::new(self.worker.clone()))),
            Backend::Deno => Ok(Box::new(Deno::open(&self.cache)?)),
            Backend::Chromium => Ok(Box::new(Chromium::open(&self.worker, &self.cache)?)),
        }
    }

    /// The microVM, as a type of its own: see [`Microvm::warm`].
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open)'s.
    pub fn microvm(&self) -> Result<Microvm, Error> {
        let image = self.image(Backend::Microvm)?;
        let archive = self.shelf().archive(image, || {})?;
        let kernel = match &self.kernel {
            Some(kernel) => kernel.clone(),
            None => kernel::find()?,
        };
        Ok(Microvm::new(
            archive,
            image.config.clone(),
            kernel,
            self.place.clone(),
        ))
    }

    fn gvisor(&self) -> Result<Gvisor, Error> {
        let image = self.image(Backend::Gvisor)?;
        let root = self.shelf().root(image, || {})?;
        Ok(Gvisor::new(
            root,
            image.config.clone(),
            self.worker.clone(),
            self.cache.clone(),
        ))
    }

    fn shelf(&self) -> Shelf {
        Shelf::new(&self.cache)
    }

    fn image(&self, backend: Backend) -> Result<&Image, Error> {
        self.image.as_deref().ok_or_else(|| Error::Unavailable {
            backend,
            why: "it needs an image".into(),
            hint: "name one, such as python:3-alpine".into(),
        })
    }
}
