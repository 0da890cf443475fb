//! The root of a machine, as files of the cache.

use std::path::Path;

use super::mapping::{self, RootFormat};
use super::{Archive, Erofs, Error, ImageCache, Unpack};
use crate::room;

/// What a machine gets of an image. It stays in the cache as long as this value is held.
#[derive(Debug)]
pub enum MachineRoot {
    /// An archive of the image's files and of init, which the guest's kernel unpacks into its memory.
    Unpacked(Archive),
    /// An EROFS image, which the guest reads in place.
    Mapped {
        /// The image.
        image: Erofs,
        /// The archive of init alone.
        init: Archive,
    },
}

impl MachineRoot {
    /// Returns an image's root for machines with this kernel, in the form that suits them; what isn't there is made, and `making` is
    /// called before that.
    ///
    /// # Errors
    ///
    /// Where it can't be made or kept, or would be an archive larger than [`LARGEST`](super::LARGEST); [`Error::RootFormat`] where the
    /// user asked for an unknown format.
    pub fn open(
        image: &dyn Unpack,
        images: &ImageCache,
        kernel: &Path,
        making: &mut dyn FnMut(RootFormat),
    ) -> Result<MachineRoot, Error> {
        let wanted = mapping::wanted()?;
        let mut unmapped = mapping::unmapped(kernel, images.init.architecture, wanted);
        if unmapped.is_none() {
            let erofs = image.erofs(images, &mut || making(RootFormat::Erofs))?;
            unmapped = mapping::too_small(erofs.size, wanted);
            if unmapped.is_none() {
                let mib = erofs.size as f64 / f64::from(1 << 20);
                log::debug!("the image is mapped: {mib:.1} MiB");
                return Ok(MachineRoot::Mapped {
                    image: erofs,
                    init: images.init_archive()?,
                });
            }
        }
        if let Some(why) = unmapped {
            log::debug!("the image is unpacked from an initramfs: {why}");
        }
        let archive = image.archive(images, &mut || making(RootFormat::Initramfs))?;
        Ok(MachineRoot::Unpacked(archive))
    }

    /// Returns the path of the archive that the machine boots from.
    pub fn initramfs(&self) -> &Path {
        match self {
            MachineRoot::Unpacked(archive) => &archive.path,
            MachineRoot::Mapped { init, .. } => &init.path,
        }
    }

    /// Returns the path of the EROFS image that the machine maps.
    pub fn image(&self) -> Option<&Path> {
        match self {
            MachineRoot::Unpacked(_) => None,
            MachineRoot::Mapped { image, .. } => Some(&image.path),
        }
    }

    /// Returns the size of the memory, in bytes, that a command gets by default.
    pub fn default_memory(&self) -> u64 {
        match self {
            MachineRoot::Unpacked(archive) => archive.default_memory(),
            MachineRoot::Mapped { .. } => room::MEMORY,
        }
    }

    /// Returns the memory, in bytes, that the machine has beside the command's: what its kernel needs to know of a mapped image's pages.
    pub fn page_structures(&self) -> u64 {
        match self {
            MachineRoot::Unpacked(_) => 0,
            MachineRoot::Mapped { image, .. } => image.page_structures(),
        }
    }

    /// Checks that `memory` bytes are enough for the kernel, the image's files where they are unpacked, and a command.
    ///
    /// # Errors
    ///
    /// [`Error::NoRoom`](crate::Error::NoRoom) where they aren't.
    pub fn check_memory(&self, memory: u64) -> Result<(), crate::Error> {
        match self {
            MachineRoot::Unpacked(archive) => archive.check_memory(memory),
            MachineRoot::Mapped { .. } => room::check_least(memory),
        }
    }
}
