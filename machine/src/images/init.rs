//! `minivm-init`, which every archive has: one program for each architecture of guests.

use minivm_image::Platform;

use super::Error;

/// A `minivm-init`.
#[derive(Debug)]
pub struct Init {
    /// The architecture of its guests, as in images' platforms.
    pub(super) architecture: &'static str,
    /// The program, a static ELF file.
    pub program: &'static [u8],
    /// The program's digest, which `build.rs` has made: it would take a millisecond of each run.
    pub(super) digest: &'static str,
}

/// The programs that `build.rs` has built. This program's own architecture is among them.
const ALL: &[Init] = include!(concat!(env!("OUT_DIR"), "/inits.rs"));

impl Init {
    /// Returns all programs.
    pub(super) fn all() -> &'static [Init] {
        ALL
    }

    /// Returns the init of this program's own architecture.
    ///
    /// # Panics
    ///
    /// Never: `build.rs` builds it always.
    pub fn here() -> &'static Init {
        Init::of(&Platform::here()).expect("build.rs builds it always")
    }

    /// Returns the init for guests of this platform.
    ///
    /// # Errors
    ///
    /// [`Error::NoInit`] where this program was built without it.
    pub fn of(platform: &Platform) -> Result<&'static Init, Error> {
        let found = ALL
            .iter()
            .find(|init| init.architecture == platform.architecture);
        found.ok_or_else(|| Error::NoInit {
            platform: platform.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The machine in an ELF file's header (elf(5), `e_machine`), by the architecture's name in platforms.
    const MACHINES: [(&str, u8); 2] = [("amd64", 62), ("arm64", 183)];

    #[test]
    fn each_init_is_a_program_for_its_architecture() {
        assert!(ALL.iter().any(|init| init.program == Init::here().program));
        for init in ALL {
            let machine = MACHINES.iter().find(|(name, _)| *name == init.architecture);
            let (name, machine) = machine.expect("the architecture is one of the two");
            assert_eq!(init.program[18..20], [*machine, 0], "{name}");
        }
    }

    #[test]
    fn a_guest_without_an_init_is_refused_by_its_platform() {
        let mut platform = Platform::here();
        platform.architecture = "s390x".into();
        let error = Init::of(&platform).unwrap_err().to_string();
        assert!(error.contains("no init for linux/s390x guests"), "{error}");
    }
}
