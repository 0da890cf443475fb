//! Symbols: the names of a kernel's functions, by which an instruction pointer becomes `io_serial_out+0x10`.
//!
//! They come from a `System.map`, or from a `vmlinux` with its symbols. A file of another kernel would give wrong names without a sign, so
//! a file is compared with the kernel where there is something to compare, and with the instruction pointers in any case.

mod elf;
mod system_map;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use elf::KernelFile;

/// The address at which the kernel's text is linked, less that at which it is loaded (`__START_KERNEL_map` in the kernel's
/// `arch/x86/include/asm/page_64_types.h`): its first instructions run at their physical addresses.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// The first address of the upper half, in which kernels run.
const UPPER_HALF: u64 = 0xffff_8000_0000_0000;
/// The share of instruction pointers outside of the kernel's text, in percent, from which on the symbols are another kernel's.
const STRAYS_MAX: u64 = 10;

/// A symbol file that can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It can't be read.
    #[error("cannot read the symbols in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// It has no symbols.
    #[error(
        "{} has no symbols of a kernel: expected a System.map, or a vmlinux that is not stripped (Debian's /boot/System.map-… only names the package that has them)", path.display()
    )]
    None {
        /// The file.
        path: PathBuf,
    },
    /// They are another kernel's.
    #[error("{} has the symbols of another kernel: {difference}", path.display())]
    OtherKernel {
        /// The file.
        path: PathBuf,
        /// What differs, with both values.
        difference: String,
    },
}

/// Reads a kernel's file, or one beside it. Only a regular file has an end for sure.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    match fs::metadata(path)?.is_file() {
        true => fs::read(path),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// Returns a name without control characters: it comes from a kernel's file, and a trace goes to terminals.
fn printable(name: &str) -> Box<str> {
    name.chars().filter(|c| !c.is_control()).collect()
}

/// The symbols of a kernel's code.
#[derive(Debug)]
pub struct Symbols {
    path: PathBuf,
    /// By address.
    functions: Vec<(u64, Box<str>)>,
    /// The kernel's text: `_text` to `_end`.
    range: std::ops::Range<u64>,
    build_id: Option<Vec<u8>>,
}

impl Symbols {
    /// Reads a `System.map` or a `vmlinux`.
    ///
    /// # Errors
    ///
    /// [`Error::Read`], or [`Error::None`] where it is neither.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = read(path).map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        let parsed = match bytes.starts_with(b"\x7fELF") {
            true => elf::symbols(&bytes),
            false => system_map::symbols(&bytes),
        };
        let none = || Error::None { path: path.into() };
        let Parsed {
            mut symbols,
            build_id,
        } = parsed.ok_or_else(none)?;
        let find = |name: &str| {
            let found = symbols.iter().find(|symbol| &*symbol.name == name);
            found.map(|symbol| symbol.address).ok_or_else(none)
        };
        let range = find("_text")?..find("_end")?;
        symbols.retain(|symbol| symbol.is_code && range.contains(&symbol.address));
        symbols.sort_by_key(|symbol| symbol.address);
        Ok(Symbols {
            path: path.into(),
            functions: symbols
                .into_iter()
                .map(|symbol| (symbol.address, printable(&symbol.name)))
                .collect(),
            range,
            build_id,
        })
    }

    /// Reads the symbols that lie beside a kernel: the kernel's own, `System.map` in its folder, or `System.map-V` beside `vmlinuz-V`.
    /// Returns `None` where no such file has symbols, or they are another kernel's.
    pub fn beside(kernel: &Path) -> Option<Self> {
        let file = KernelFile::read(kernel);
        let folder = kernel.parent()?;
        let version = kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-");
        let map = match version {
            Some(version) => folder.join(format!("System.map-{version}")),
            None => folder.join("System.map"),
        };
        let candidates = [kernel.to_owned(), map].into_iter();
        let read = candidates.filter_map(|path| Symbols::read(&path).ok());
        let mut fitting = read.filter(|symbols| symbols.check(&file).is_ok());
        fitting.next()
    }

    /// Compares the symbols with the kernel's file.
    ///
    /// # Errors
    ///
    /// [`Error::OtherKernel`].
    pub fn check(&self, kernel: &KernelFile) -> Result<(), Error> {
        let other = |difference| {
            Err(Error::OtherKernel {
                path: self.path.clone(),
                difference,
            })
        };
        if let (Some(ours), Some(theirs)) = (&self.build_id, &kernel.build_id)
            && ours != theirs
        {
            let (ours, theirs) = (id(ours), id(theirs));
            return other(format!("its build ID is {ours}, and the kernel's {theirs}"));
        }
        match kernel.end {
            Some(end) if page(end) != page(self.range.end) => {
                let ours = self.range.end;
                other(format!("it ends at {ours:#x}, and the kernel at {end:#x}"))
            }
            _ => Ok(()),
        }
    }

    /// Returns the name of the function at `rip`, and the offset in it. The kernel's first instructions run at physical addresses, and
    /// have the names of their later ones.
    pub fn find(&self, rip: u64) -> Option<(&str, u64)> {
        let rip = if rip < self.range.end.saturating_sub(KERNEL_MAP) {
            rip + KERNEL_MAP
        } else {
            rip
        };
        if !self.range.contains(&rip) {
            return None;
        }
        let behind = self
            .functions
            .partition_point(|(address, _)| *address <= rip);
        let (address, name) = self.functions.get(behind.checked_sub(1)?)?;
        Some((name, rip - address))
    }

    /// Returns whether `rip` is in the kernel's half of the address space, and if so, whether it is in the kernel that these are the
    /// symbols of.
    fn fits(&self, rip: u64) -> Option<bool> {
        (rip >= UPPER_HALF).then(|| self.range.contains(&rip))
    }
}

/// Counts the instruction pointers that don't fit the symbols.
#[derive(Debug, Default)]
pub(crate) struct Strays {
    seen: u64,
    strays: u64,
}

impl Strays {
    pub(crate) fn count(&mut self, symbols: &Symbols, rip: u64) {
        if let Some(fits) = symbols.fits(rip) {
            self.seen += 1;
            self.strays += u64::from(!fits);
        }
    }

    /// Returns a warning where the symbols are another kernel's. Code outside of a kernel's text, such as modules and compiled filters,
    /// makes few exits.
    pub(crate) fn warning(&self, symbols: &Symbols) -> Option<String> {
        (self.strays * 100 > self.seen * STRAYS_MAX).then(|| {
            format!(
                "the symbols in {} seem to be another kernel's, or this kernel moves itself (boot it with nokaslr): {} of {} exits came from \
                 outside of it",
                symbols.path.display(),
                self.strays,
                self.seen
            )
        })
    }
}

/// What a file has.
struct Parsed {
    symbols: Vec<Symbol>,
    build_id: Option<Vec<u8>>,
}

struct Symbol {
    address: u64,
    name: Box<str>,
    is_code: bool,
}

fn page(address: u64) -> u64 {
    address.div_ceil(4096)
}

/// Returns the beginning of a build ID, as tools print it.
fn id(bytes: &[u8]) -> String {
    bytes
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "0000000000000000 D __per_cpu_start\n\
        ffffffff81000000 T _text\n\
        ffffffff81000000 T startup_64\n\
        ffffffff81000100 t io_serial_out\n\
        ffffffff81200000 D some_data\n\
        ffffffff81300000 T late\n\
        ffffffff81400000 B _end\n";

    fn map(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("System.map");
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn a_pointer_has_its_functions_name() {
        let (_folder, path) = map(MAP);
        let symbols = Symbols::read(&path).unwrap();
        for (rip, expected) in [
            (0xffff_ffff_8100_0110, Some(("io_serial_out", 0x10))),
            (0xffff_ffff_8100_00ff, Some(("startup_64", 0xff))),
            // Data is no function's.
            (0xffff_ffff_8130_0000, Some(("late", 0))),
            // Before the kernel uses its own page tables.
            (0x0100_0100, Some(("io_serial_out", 0))),
            (0xffff_ffff_8140_0000, None),
            (0xffff_ffff_80ff_ffff, None),
            (0x0000_7fff_0000_0000, None),
        ] {
            let found = symbols.find(rip);
            match found {
                // Two names of one address: either will do.
                Some((_, offset)) if rip == 0xffff_ffff_8100_00ff => assert_eq!(offset, 0xff),
                found => assert_eq!(found, expected, "{rip:#x}"),
            }
        }
    }

    #[test]
    fn a_file_without_symbols_is_refused() {
        let debian =
            "ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n";
        for text in ["", "\u{0}", debian, "ffffffff81000000 T _text\n", "\x7fELF"] {
            let (_folder, path) = map(text);
            let error = Symbols::read(&path).unwrap_err().to_string();
            assert!(error.contains("has no symbols of a kernel"), "{error}");
        }
    }

    #[test]
    fn another_kernels_symbols_are_refused() {
        let (_folder, path) = map(MAP);
        let symbols = Symbols::read(&path).unwrap();
        let kernel = |end| KernelFile {
            end: Some(end),
            build_id: None,
        };
        symbols.check(&kernel(0xffff_ffff_8140_0000)).unwrap();
        let error = symbols.check(&kernel(0xffff_ffff_8150_0000)).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("another kernel: it ends at 0xffffffff81400000"),
            "{error}"
        );
        symbols.check(&KernelFile::default()).unwrap();
    }

    #[test]
    fn pointers_that_never_fit_are_warned_about() {
        let (_folder, path) = map(MAP);
        let symbols = Symbols::read(&path).unwrap();
        let warning = |rips: &[u64]| {
            let mut strays = Strays::default();
            rips.iter().for_each(|rip| strays.count(&symbols, *rip));
            strays.warning(&symbols)
        };
        let (inside, outside) = (0xffff_ffff_8100_0000, 0xffff_ffff_8150_0000);
        assert_eq!(warning(&[]), None);
        assert_eq!(warning(&[inside, 0x1000, 0x2000]), None);
        let text = warning(&[inside, outside]).unwrap();
        assert!(text.contains("1 of 2 exits"), "{text}");
        let mut many = vec![inside; 20];
        many.push(outside);
        assert_eq!(warning(&many), None);
    }
}
