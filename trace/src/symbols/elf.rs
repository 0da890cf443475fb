//! An ELF kernel, `vmlinux`: its symbols, its build ID, and where it ends.

use std::path::Path;

use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol, SymbolKind, elf};

use super::{KERNEL_MAP, Parsed, Symbol, read};

/// What can be compared of a kernel's file with symbols: of a bzImage, nothing.
#[derive(Debug, Default)]
pub struct KernelFile {
    /// The end of its memory, `_end`.
    pub(super) end: Option<u64>,
    pub(super) build_id: Option<Vec<u8>>,
}

impl KernelFile {
    /// Reads the kernel. A file that can't be read has nothing to compare.
    pub fn read(path: &Path) -> Self {
        let bytes = read(path).unwrap_or_default();
        let Ok(file) = ElfFile64::<Endianness>::parse(&*bytes) else {
            return KernelFile::default();
        };
        KernelFile {
            end: end(&file),
            build_id: build_id(&file),
        }
    }
}

/// Returns the symbols; `None` where the bytes are not a 64-bit ELF file.
pub(super) fn symbols(bytes: &[u8]) -> Option<Parsed> {
    let file = ElfFile64::<Endianness>::parse(bytes).ok()?;
    let symbols = file.symbols().filter_map(|symbol| {
        Some(Symbol {
            address: symbol.address(),
            name: symbol.name().ok()?.into(),
            // Assembler code often leaves the type out.
            is_code: matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Unknown),
        })
    });
    Some(Parsed {
        symbols: symbols.collect(),
        build_id: build_id(&file),
    })
}

fn build_id(file: &ElfFile64<'_, Endianness>) -> Option<Vec<u8>> {
    Some(file.build_id().ok()??.to_vec())
}

/// Returns the end of the last segment at the kernel's addresses; the one of per-CPU data starts at 0.
fn end(file: &ElfFile64<'_, Endianness>) -> Option<u64> {
    let endian = file.endian();
    let segments = file.elf_program_headers().iter();
    let loaded = segments.filter(|segment| segment.p_type(endian) == elf::PT_LOAD);
    let ends =
        loaded.filter_map(|segment| segment.p_vaddr(endian).checked_add(segment.p_memsz(endian)));
    ends.filter(|end| *end > KERNEL_MAP).max()
}
