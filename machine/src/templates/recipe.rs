//! Recipes: all that a template is made from, and the name that follows from it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use minivm_guest::channel::{Interpreter, Preparation, Request};
use minivm_image::Config;
use minivm_image::io_error::failed;
use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::images::key_of;
use crate::session::now;
use crate::template::{Rings, Saved};
use crate::{MachineSpec, PYTHON, arch};

/// The length of a key in hexadecimal digits.
const KEY_LEN: usize = 32;
/// The image, machine, configuration and code that a template is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The image's name, as the user gave it.
    pub image: String,
    /// The machine: its kernel, the image's archive, memory, vCPUs.
    pub machine: MachineSpec,
    /// The image's configuration.
    pub config: Config,
    /// Code that the template's Python has run; `None` where none was started. Empty code starts Python as well.
    pub warm: Option<String>,
}

impl Recipe {
    /// Returns the recipe with its kernel path made absolute: background processes run in another folder.
    pub(super) fn with_absolute_kernel(mut self) -> Result<Recipe, Error> {
        let kernel = &mut self.machine.kernel;
        *kernel = kernel.canonicalize().map_err(failed("find", kernel))?;
        Ok(self)
    }

    /// Returns the key, a hash of all that the template depends on: the image's files, with the init in them, the kernel, memory and
    /// vCPUs, this host's processor, the code, and this program.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where the kernel's or this program's metadata can't be read.
    pub(crate) fn key(&self) -> Result<String, Error> {
        let machine = &self.machine;
        let kernel = identity(&machine.kernel)?;
        let program = identity(Path::new("/proc/self/exe"))?;
        let image = machine.image.as_deref().unwrap_or(Path::new(""));
        let warm = serde_json::to_vec(&self.interpreter()).expect("plain data can be written");
        Ok(key_of(&[
            // The files' names have the image's identity and that of the init.
            machine.initramfs.as_os_str().as_encoded_bytes(),
            image.as_os_str().as_encoded_bytes(),
            machine.kernel.as_os_str().as_encoded_bytes(),
            &kernel,
            &program,
            &machine.memory.to_le_bytes(),
            &[machine.cpus, u8::from(machine.rings)],
            &warm,
            &arch::processor(),
        ]))
    }

    /// Boots the machine on this host's KVM up to where it waits for a request, and saves it in `folder`.
    ///
    /// # Errors
    ///
    /// As [`MachineSpec::save_prepared`]'s.
    pub(crate) fn save(&self, folder: &Path) -> Result<Rings, crate::Error> {
        let preparation = Preparation {
            now: now(),
            interpreter: self.interpreter(),
        };
        let rings = self.machine.save_prepared(preparation, folder)?;
        let rehearsed = Saved::open(folder, self.machine.image.as_deref(), rings)
            .map_err(crate::Error::Monitor)
            .and_then(|saved| saved.rehearse(self.rehearsal(), self.machine.cpu_quota, folder));
        if let Err(error) = rehearsed {
            log::debug!("the template is slower than it could be: {error}");
        }
        Ok(rings)
    }

    /// Returns a request that touches the pages that all requests touch.
    fn rehearsal(&self) -> Request {
        match self.interpreter() {
            Some(Interpreter { mut request, .. }) => {
                request
                    .argv
                    .extend(["-u", "-c", "print(2+2)"].map(Into::into));
                request
            }
            // A folder can't be executed: which programs later requests run is not known.
            None => Request {
                argv: vec!["/".into()],
                hostname: "minivm".into(),
                ..Request::default()
            },
        }
    }

    /// Returns how the template starts Python, with the image's user and environment; `None` where it starts none.
    fn interpreter(&self) -> Option<Interpreter> {
        let bytes = |text: &String| text.clone().into_bytes();
        let config = &self.config;
        let request = Request {
            argv: vec![PYTHON.into()],
            env: config.env.iter().map(bytes).collect(),
            cwd: bytes(&config.working_dir),
            user: config.user.clone(),
            hostname: "minivm".into(),
            ..Request::default()
        };
        let code = self.warm.clone()?;
        Some(Interpreter { request, code })
    }
}

/// Returns whether a name is a key.
pub(super) fn is_key(name: &str) -> bool {
    name.len() == KEY_LEN && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns bytes that change when the path names another file, or the file is written to.
fn identity(path: &Path) -> Result<Vec<u8>, Error> {
    let metadata: Metadata = path.metadata().map_err(failed("read", path))?;
    let numbers = [
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime().cast_unsigned(),
        metadata.mtime_nsec().cast_unsigned(),
    ];
    Ok(numbers.iter().flat_map(|n| n.to_le_bytes()).collect())
}

#[cfg(test)]
impl Recipe {
    /// Returns the recipe of a small machine.
    pub(crate) fn example(kernel: std::path::PathBuf, initramfs: std::path::PathBuf) -> Recipe {
        Recipe {
            image: "image".into(),
            machine: MachineSpec {
                kernel,
                initramfs,
                image: None,
                memory: 1 << 28,
                cpus: 1,
                rings: true,
                console: false,
                cpu_quota: None,
            },
            config: Config::default(),
            warm: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a recipe whose kernel is a file in `folder`.
    fn with_kernel_in(folder: &Path) -> Recipe {
        let kernel = folder.join("vmlinux");
        std::fs::write(&kernel, "kernel").unwrap();
        Recipe::example(kernel, "/a/b.cpio".into())
    }

    #[test]
    fn a_change_of_the_machine_changes_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let first = with_kernel_in(folder.path());
        let key = first.key().unwrap();
        assert!(is_key(&key));
        assert_eq!(first.key().unwrap(), key);
        type Change = fn(&mut Recipe);
        let changes: [Change; 5] = [
            |recipe| recipe.machine.memory += 1 << 20,
            |recipe| recipe.machine.cpus += 1,
            |recipe| recipe.machine.initramfs = "/a/c.cpio".into(),
            |recipe| recipe.machine.image = Some("/a/b.erofs".into()),
            |recipe| recipe.warm = Some(String::new()),
        ];
        for change in changes {
            let mut other = first.clone();
            change(&mut other);
            assert_ne!(other.key().unwrap(), key);
        }
        std::fs::write(&first.machine.kernel, "another").unwrap();
        assert_ne!(first.key().unwrap(), key, "the kernel was written to");
    }

    #[test]
    fn a_recipe_without_a_mapped_image_is_written_as_before_there_were_any() {
        let mut recipe = Recipe::example("/kernel".into(), "/a/b.cpio".into());
        let text = serde_json::to_value(&recipe).unwrap();
        assert_eq!(
            text["machine"],
            serde_json::json!({"kernel": "/kernel", "initramfs": "/a/b.cpio", "memory": 1 << 28,
                "cpus": 1, "rings": true, "console": false})
        );
        assert_eq!(serde_json::from_value::<Recipe>(text).unwrap(), recipe);
        recipe.machine.image = Some("/a/b.erofs".into());
        let text = serde_json::to_value(&recipe).unwrap();
        assert_eq!(text["machine"]["image"], "/a/b.erofs");
        assert_eq!(serde_json::from_value::<Recipe>(text).unwrap(), recipe);
    }
}
