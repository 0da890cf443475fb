//! The parts of sandboxes on this host: the worker program, the cache, an image, a kernel.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Backend, Chromium, Deno, Error, Gvisor, Microvm, Monty, Sandbox};
use minivm_machine::Accel;
use minivm_machine::images::{ImageCache, MachineRoot, Unpack};
use minivm_machine::kernel;

/// The parts of this host that sandboxes are made of.
#[derive(Clone, Debug)]
pub struct Host {
    /// The program `minivm-worker`, which some sandboxes run in their jails. It lies beside `minivm`: see [`Host::worker_beside`].
    pub worker: PathBuf,
    /// The cache's folder, see [`minivm_machine::cache::folder`].
    pub cache: PathBuf,
    /// The image, for backends that need one ([`Backend::needs_image`]).
    pub image: Option<Arc<dyn Unpack>>,
    /// The microVM's kernel; `None` for the one that [`minivm_machine::kernel::find`] finds.
    pub kernel: Option<PathBuf>,
    /// Whether the microVM runs on this host's KVM or in the lab.
    pub accel: Accel,
}

impl Host {
    /// Returns the path of the worker beside this `minivm`.
    pub fn worker_beside(minivm: &Path) -> PathBuf {
        minivm.with_file_name("minivm-worker")
    }

    /// Opens the sandbox of a backend. It first makes what the cache lacks: the image's archive or EROFS image for a microVM, its root
    /// folder for gVisor.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] where a program or the image is missing, [`Error::Images`] where the image can't be unpacked, and
    /// [`Error::Kernel`] where the microVM's kernel is missing.
    pub fn open(&self, backend: Backend) -> Result<Box<dyn Sandbox>, Error> {
        match backend {
            Backend::Microvm => Ok(Box::new(self.microvm()?)),
            Backend::Gvisor => Ok(Box::new(self.gvisor()?)),
            Backend::Monty => Ok(Box::new(Monty::new(self.worker.clone()))),
            Backend::Deno => Ok(Box::new(Deno::open(&self.cache)?)),
            Backend::Chromium => Ok(Box::new(Chromium::open(&self.worker, &self.cache)?)),
        }
    }

    /// Opens the microVM as its own type, whose methods set vCPUs, console and templates.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn microvm(&self) -> Result<Microvm, Error> {
        let image = self.image(Backend::Microvm)?;
        let kernel = match &self.kernel {
            Some(kernel) => kernel.clone(),
            None => kernel::find()?,
        };
        let root = MachineRoot::open(image, &self.image_cache(), &kernel, &mut |_| {})?;
        Ok(Microvm::new(
            root,
            image.config().clone(),
            kernel,
            self.accel.clone(),
        ))
    }

    fn gvisor(&self) -> Result<Gvisor, Error> {
        let image = self.image(Backend::Gvisor)?;
        let root = image.root(&self.image_cache(), &mut || {})?;
        Ok(Gvisor::new(
            root,
            image.config().clone(),
            self.worker.clone(),
            self.cache.clone(),
        ))
    }

    fn image_cache(&self) -> ImageCache {
        ImageCache::new(&self.cache)
    }

    fn image(&self, backend: Backend) -> Result<&dyn Unpack, Error> {
        self.image.as_deref().ok_or_else(|| Error::Unavailable {
            backend,
            why: "it needs an image".into(),
            hint: "name one, such as python:3-alpine".into(),
        })
    }
}
