//! An ELF `vmlinux`: segments to copy, an entry point to jump to.
//!
//! Checked first: the processor, that every segment is in the file and in RAM, that no two of them overlap (their memory
//! size counts, which includes the zeros behind the file's bytes), and that the entry lies in one of them. Then the
//! segments that were checked are copied, and nothing else of the file is looked at: linux-loader's `Elf::load` would read
//! the headers again, and follow notes of any size for an entry point that isn't used here.
//! (System V ABI, "Object Files", "Program Header".)

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use crate::kernel::{Image, KernelError, Loaded, u16_at, u32_at, u64_at};
use crate::memory::GuestRam;

const EI_CLASS: usize = 4;
const ELFCLASS64: u8 = 2;
const EI_DATA: usize = 5;
const ELFDATA2LSB: u8 = 1;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const EHDR_SIZE: usize = 64;
const PHDR_SIZE: usize = 56;

/// Checks `file` and copies its segments to their addresses.
pub(super) fn load(mut file: &File, image: Image, ram: &GuestRam) -> Result<Loaded, KernelError> {
    let (entry, segments) = read_headers(file, image)?;
    let end = check(entry, &segments, image)?;
    for segment in &segments {
        file.seek(SeekFrom::Start(segment.offset))
            .map_err(KernelError::Read)?;
        let len = usize::try_from(segment.file_size).expect("it fits into RAM");
        ram.map()
            .read_exact_volatile_from(GuestAddress(segment.address), &mut file, len)
            .map_err(|error| KernelError::Read(io::Error::other(error)))?;
    }
    Ok(Loaded {
        entry: GuestAddress(entry),
        end: GuestAddress(end),
        initramfs_end: u64::MAX,
        header: None,
    })
}

/// The fields of a PT_LOAD program header.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

fn read_headers(file: &File, image: Image) -> Result<(u64, Vec<Segment>), KernelError> {
    image.holds("the ELF header", 0, EHDR_SIZE as u64)?;
    let mut ehdr = [0; EHDR_SIZE];
    file.read_exact_at(&mut ehdr, 0)
        .map_err(KernelError::Read)?;
    check_machine(&ehdr)?;

    let (phoff, phentsize, phnum) = (u64_at(&ehdr, 32), u16_at(&ehdr, 54), u16_at(&ehdr, 56));
    if usize::from(phentsize) != PHDR_SIZE {
        return Err(KernelError::Damaged(
            "its program headers have an unknown size".into(),
        ));
    }
    let table_len = PHDR_SIZE * usize::from(phnum);
    image.holds("the table of program headers", phoff, table_len as u64)?;
    let mut table = vec![0; table_len];
    file.read_exact_at(&mut table, phoff)
        .map_err(KernelError::Read)?;

    let segments = table
        .chunks_exact(PHDR_SIZE)
        .filter(|phdr| u32_at(phdr, 0) == PT_LOAD)
        .map(|phdr| Segment {
            offset: u64_at(phdr, 8),
            address: u64_at(phdr, 24),
            file_size: u64_at(phdr, 32),
            memory_size: u64_at(phdr, 40),
        })
        .filter(|segment| segment.memory_size > 0 || segment.file_size > 0)
        .collect();
    Ok((u64_at(&ehdr, 24), segments))
}

fn check_machine(ehdr: &[u8]) -> Result<(), KernelError> {
    let machine = if ehdr[EI_DATA] == ELFDATA2LSB {
        u16_at(ehdr, 18)
    } else {
        u16::from_be_bytes([ehdr[18], ehdr[19]])
    };
    if machine == EM_X86_64 && ehdr[EI_CLASS] == ELFCLASS64 && ehdr[EI_DATA] == ELFDATA2LSB {
        return Ok(());
    }
    // System V ABI, "ELF Header", e_machine.
    Err(KernelError::WrongMachine(match machine {
        3 => "32-bit x86".into(),
        8 => "MIPS".into(),
        20 | 21 => "PowerPC".into(),
        22 => "S/390".into(),
        40 => "32-bit Arm".into(),
        183 => "aarch64".into(),
        243 => "RISC-V".into(),
        other => format!("machine number {other}"),
    }))
}

/// Returns the kernel's end, or its defect.
fn check(entry: u64, segments: &[Segment], image: Image) -> Result<u64, KernelError> {
    let mut places = Vec::new();
    for segment in segments {
        if segment.file_size > segment.memory_size {
            return Err(KernelError::Damaged(
                "a segment has more bytes in the file than in memory".into(),
            ));
        }
        image.holds("a segment", segment.offset, segment.file_size)?;
        places.push((
            segment.address,
            image.fits(segment.address, segment.memory_size)?,
        ));
    }
    places.sort_unstable();
    if let Some(pair) = places.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        return Err(KernelError::Overlap(pair[1].0));
    }
    let Some(&(_, end)) = places.last() else {
        return Err(KernelError::Damaged("it has nothing to load".into()));
    };
    if !places
        .iter()
        .any(|&(start, end)| (start..end).contains(&entry))
    {
        return Err(KernelError::Damaged(
            "its entry point is not in a segment that it loads".into(),
        ));
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: Image = Image {
        size: 0x1000,
        ram_end: 32 << 20,
    };

    fn segment(address: u64, memory_size: u64) -> Segment {
        Segment {
            offset: 0,
            address,
            file_size: memory_size.min(0x1000),
            memory_size,
        }
    }

    #[test]
    fn the_end_is_the_highest_segments_end() {
        let segments = [segment(0x20_0000, 0x5000), segment(0x10_0000, 0x1000)];
        assert_eq!(check(0x10_0000, &segments, IMAGE).unwrap(), 0x20_5000);
    }

    #[test]
    fn impossible_segments_are_refused() {
        let refusal =
            |entry, segments: &[Segment]| check(entry, segments, IMAGE).unwrap_err().to_string();
        assert!(refusal(0, &[]).contains("nothing to load"));
        assert!(
            refusal(
                0x10_0000,
                &[segment(0x10_0000, 0x2000), segment(0x10_1fff, 1)]
            )
            .contains("overlap")
        );
        assert!(refusal(0, &[segment(0x10_0000, 0x2000)]).contains("entry point"));
        assert!(refusal(0, &[segment(0, 0x2000)]).contains("not in guest RAM"));
        assert!(refusal(0, &[segment(0x1ff_f000, 0x2000)]).contains("not in guest RAM"));
        assert!(refusal(0, &[segment(u64::MAX, 2)]).contains("not in guest RAM"));
        let cut = Segment {
            offset: 0x800,
            ..segment(0x10_0000, 0x1000)
        };
        assert!(refusal(0x10_0000, &[cut]).contains("truncated"));
        let fat = Segment {
            file_size: 2,
            memory_size: 1,
            ..segment(0x10_0000, 1)
        };
        assert!(refusal(0x10_0000, &[fat]).contains("more bytes in the file"));
    }
}
