//! The host's side of the rings in guest memory.

use minivm_guest::channel::ring::{
    DIRECTORY_ADDRESSES, DIRECTORY_MAGIC, DIRECTORY_PAGES, Direction, Memory as RingMemory, PAGE,
    PAGES_MAX, Word,
};
use minivm_vmm::{Memory, NoMemory};

/// Why a guest's rings can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadRings {
    /// An address has no RAM, or is not a page's.
    #[error("the guest's rings are not in its memory")]
    Address(#[from] NoMemory),
    /// There is no directory at the address.
    #[error("no ring directory at the address the guest gave")]
    Magic,
    /// The number of pages isn't a power of two, or is above [`PAGES_MAX`].
    #[error("the guest's rings have {0} pages each: at most {PAGES_MAX}, and a power of two")]
    Pages(u32),
}

/// One ring in a guest's memory, as the host reads and writes it.
pub(super) struct Ring {
    memory: Memory,
    directory: u64,
    direction: Direction,
    pages: Vec<u64>,
}

/// Finds the two rings: to the host, and to the guest. The directory is read once, into memory that the guest can't change, and
/// checked there.
///
/// # Errors
///
/// [`BadRings`], whose variants say what the guest did wrong.
pub(super) fn find(memory: &Memory, directory: u64) -> Result<(Ring, Ring), BadRings> {
    let mut page = [0; PAGE];
    aligned(directory)?;
    memory.read(directory, &mut page)?;
    if !page.starts_with(&DIRECTORY_MAGIC) {
        return Err(BadRings::Magic);
    }
    let word = page[DIRECTORY_PAGES..][..4].try_into().expect("4 bytes");
    let pages = u32::from_le_bytes(word);
    let count = pages as usize;
    if !pages.is_power_of_two() || count > PAGES_MAX {
        return Err(BadRings::Pages(pages));
    }
    let addresses: Vec<u64> = page[DIRECTORY_ADDRESSES..][..2 * count * 8]
        .chunks_exact(8)
        .map(|address| u64::from_le_bytes(address.try_into().expect("8 bytes")))
        .collect();
    for address in &addresses {
        aligned(*address)?;
        memory.read(*address, &mut [0; PAGE])?;
    }
    let (to_host, to_guest) = addresses.split_at(count);
    let ring = |direction, pages: &[u64]| Ring {
        memory: memory.clone(),
        directory,
        direction,
        pages: pages.to_vec(),
    };
    Ok((
        ring(Direction::ToHost, to_host),
        ring(Direction::ToGuest, to_guest),
    ))
}

fn aligned(address: u64) -> Result<(), NoMemory> {
    match address.is_multiple_of(PAGE as u64) {
        true => Ok(()),
        false => Err(NoMemory { address }),
    }
}

/// Why an access can't fail: a machine's RAM stays as it is from its first instruction to its end.
const CHECKED: &str = "the address was checked when the ring was found";

impl Ring {
    fn word(&self, word: Word) -> u64 {
        self.directory + word.offset(self.direction) as u64
    }

    /// Splits `len` bytes from `offset` on at page boundaries, and calls `access` with each piece's guest-physical address and its
    /// range among them.
    fn pieces(&self, offset: u32, len: usize, mut access: impl FnMut(u64, std::ops::Range<usize>)) {
        let (mut at, mut done) = (offset as usize, 0);
        while done < len {
            let piece = (PAGE - at % PAGE).min(len - done);
            access(
                self.pages[at / PAGE] + (at % PAGE) as u64,
                done..done + piece,
            );
            at += piece;
            done += piece;
        }
    }
}

impl RingMemory for Ring {
    fn size(&self) -> u32 {
        u32::try_from(self.pages.len() * PAGE).expect("at most PAGES_MAX pages")
    }

    fn load(&self, word: Word) -> u32 {
        self.memory.load(self.word(word)).expect(CHECKED)
    }

    fn store(&self, word: Word, value: u32) {
        self.memory.store(self.word(word), value).expect(CHECKED);
    }

    fn read(&self, offset: u32, into: &mut [u8]) {
        self.pieces(offset, into.len(), |address, range| {
            self.memory.read(address, &mut into[range]).expect(CHECKED);
        });
    }

    fn write(&self, offset: u32, from: &[u8]) {
        self.pieces(offset, from.len(), |address, range| {
            self.memory.write(address, &from[range]).expect(CHECKED);
        });
    }
}
