//! Machines that are sent to a lab: each is described in one file, whatever it is to do there.
//!
//! The lab gets the kernel, the initramfs, and `/machine.json` with a [`LabMachine`]. The command `minivm lab-machine` there reads the
//! file ([`LabMachine::receive`]) and runs the machine. An image that the guest reads in place is not copied into the lab: it is a disk
//! there, whose page cache the machine maps.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use minivm_image::io_error::{HostError, cannot};
use minivm_vmm::{Config, Kernel};
use serde::{Deserialize, Serialize};

use crate::lab::{DISK, LabRequest, Root};
use crate::templates::Recipe;
use crate::timeline::{Job, Subject};
use crate::{Error, MachineSpec};

/// The argument that makes this program run the machine that the lab was sent. The command line must call [`LabMachine::receive`] for it.
pub const COMMAND: &str = "lab-machine";
/// Paths of the files in the lab.
const KERNEL: &str = "/kernel";
const INITRAMFS: &str = "/initramfs";
const RECORD: &str = "/machine.json";

/// A machine to run in a lab, by what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LabMachine {
    /// `minivm --kernel`: the machine's console is the lab command's stdin and stdout.
    Console(Config),
    /// `minivm run`: the machine's frames come from stdin and go to stdout, see [`relay`](crate::relay).
    Session(MachineSpec),
    /// `minivm timeline`: the machine is measured, and its timeline goes to stdout, see [`timeline::answer`](crate::timeline::answer).
    Timeline(Job),
    /// A kept lab: the machine is made ready once, saved, and resumed at every port, see [`run_agent`](crate::templates::lab::run_agent).
    Template(Recipe),
}

/// The parts of a machine that a lab gets.
struct Parts<'a> {
    kernel: Option<&'a mut PathBuf>,
    initramfs: Option<&'a mut PathBuf>,
    /// The file that the guest reads in place.
    mapped: Option<&'a mut PathBuf>,
    /// Guest memory in bytes.
    memory: u64,
}

impl LabMachine {
    /// Makes the request for a lab that has the machine and its files, and nothing else of the host's. `verbose` is the number of `-v`
    /// for the command there.
    ///
    /// # Errors
    ///
    /// [`Error::Lab`] where a file can't be read, or the machine needs more memory than the host has; [`Error::Host`] where the machine
    /// can't be written as JSON.
    pub fn request(&self, verbose: u8) -> Result<LabRequest, Error> {
        let mut command = vec!["/minivm"];
        command.extend((0..verbose).map(|_| "-v"));
        command.push(COMMAND);
        let mut request = LabRequest::new(Root::Private, command);
        let mut inside = self.clone();
        let Parts {
            kernel,
            initramfs,
            mapped,
            memory,
        } = inside.parts();
        request.files.extend(moved(kernel, KERNEL));
        request.files.extend(moved(initramfs, INITRAMFS));
        request.disk = moved(mapped, DISK).map(|(file, _)| file);
        request.make_room(memory)?;
        let record = serde_json::to_vec(&inside).map_err(io::Error::from);
        let record = record.map_err(cannot("describe the machine to the lab"))?;
        request.contents.push((record, RECORD.into()));
        Ok(request)
    }

    /// Returns the parts that the lab gets.
    fn parts(&mut self) -> Parts<'_> {
        let machine = match self {
            LabMachine::Console(config)
            | LabMachine::Timeline(Job {
                subject: Subject::Raw(config),
                ..
            }) => {
                return Parts {
                    kernel: match &mut config.kernel {
                        Kernel::File(path) => Some(path),
                        Kernel::Code(_) => None,
                    },
                    initramfs: config.initramfs.as_mut(),
                    mapped: config.pmem.as_mut(),
                    memory: config.memory,
                };
            }
            LabMachine::Session(machine)
            | LabMachine::Template(Recipe { machine, .. })
            | LabMachine::Timeline(Job {
                subject: Subject::Cold(machine, _),
                ..
            }) => machine,
            LabMachine::Timeline(Job {
                subject: Subject::Warm(recipe, _),
                ..
            }) => &mut recipe.machine,
        };
        Parts {
            kernel: Some(&mut machine.kernel),
            initramfs: Some(&mut machine.initramfs),
            mapped: machine.image.as_mut(),
            memory: machine.memory,
        }
    }

    /// Returns the machine that this lab was sent.
    ///
    /// # Errors
    ///
    /// Where `/machine.json` can't be read, as everywhere but in a lab that [`request`](Self::request) made.
    pub fn receive() -> Result<LabMachine, HostError> {
        let reading = || cannot(format!("read {RECORD}, which minivm sends to its labs"));
        let record = fs::read(Path::new(RECORD)).map_err(reading())?;
        serde_json::from_slice(&record)
            .map_err(io::Error::from)
            .map_err(reading())
    }
}

/// Replaces a path by that in the lab; returns both, for [`LabRequest::files`].
fn moved(path: Option<&mut PathBuf>, inside: &str) -> Option<(PathBuf, PathBuf)> {
    let path = path?;
    let host = std::mem::replace(path, inside.into());
    Some((host, inside.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab;

    #[test]
    fn a_lab_gets_the_machines_files_and_a_record_with_their_names_there() {
        let folder = tempfile::tempdir().unwrap();
        let (kernel, initramfs) = (folder.path().join("k"), folder.path().join("i"));
        fs::write(&kernel, "kernel").unwrap();
        fs::write(&initramfs, "initramfs").unwrap();
        let config = Config {
            initramfs: Some(initramfs.clone()),
            pmem: Some("/home/me/image".into()),
            cmdline: "-x \"\n".into(),
            ..Config::new(Kernel::File(kernel.clone()))
        };
        let request = LabMachine::Console(config.clone()).request(2).unwrap();
        assert_eq!(request.command, ["/minivm", "-v", "-v", COMMAND]);
        let files = [(kernel, KERNEL.into()), (initramfs, INITRAMFS.into())];
        assert_eq!(request.files, files);
        assert_eq!(request.disk.as_deref(), Some(Path::new("/home/me/image")));
        let [(record, name)] = &*request.contents else {
            panic!("{:?}", request.contents)
        };
        assert_eq!(name, Path::new(RECORD));
        let inside = Config {
            kernel: Kernel::File(KERNEL.into()),
            initramfs: Some(INITRAMFS.into()),
            pmem: Some(DISK.into()),
            ..config
        };
        let read: LabMachine = serde_json::from_slice(record).unwrap();
        assert_eq!(read, LabMachine::Console(inside));
    }

    #[test]
    fn a_machine_larger_than_this_host_is_refused() {
        let config = Config {
            memory: 1 << 50,
            ..Config::new(Kernel::Code(Vec::new()))
        };
        let refused = LabMachine::Console(config).request(0).err();
        assert!(matches!(
            refused,
            Some(Error::Lab(lab::Error::TooLarge { .. }))
        ));
    }

    #[test]
    fn outside_a_lab_there_is_no_machine() {
        let error = LabMachine::receive().unwrap_err().to_string();
        assert!(error.contains("/machine.json"), "{error}");
    }
}
