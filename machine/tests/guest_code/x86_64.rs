//! x86-64's machine code of hostile guests.

use minivm_guest::channel::ring::{Direction, Word};
use minivm_guest::channel::{COM2, COM3};
use minivm_tests::kernel_file::{Elf, Segment};

use super::{DIRECTORY, WORDS};

/// The first address of RAM.
pub(crate) const RAM: u64 = 0;

/// `jmp $`.
pub(crate) const LOOP: [u8; 2] = [0xeb, 0xfe];
/// `rep outsb`, with RSI, RCX and DX set: writes RCX bytes from RSI on to the port.
const REP_OUTSB: [u8; 2] = [0xf3, 0x6e];

/// Returns a kernel's file of this code, with bytes at addresses.
pub(crate) fn kernel(code: &[&[u8]], data: &[(u64, &[u8])]) -> Vec<u8> {
    let mut elf = Elf::of_code(code);
    let data = data.iter().filter(|(_, bytes)| !bytes.is_empty());
    elf.segments
        .extend(data.map(|(address, bytes)| Segment::new(*address, bytes)));
    elf.bytes()
}

/// Returns code that writes `len` bytes from WORDS on to COM2.
pub(crate) fn say(len: usize) -> Vec<u8> {
    let mut code = vec![0xbe]; // mov esi, WORDS
    code.extend(u32::try_from(WORDS).unwrap().to_le_bytes());
    code.push(0xb9); // mov ecx, len
    code.extend(u32::try_from(len).unwrap().to_le_bytes());
    code.extend([0x66, 0xba]); // mov dx, COM2
    code.extend(COM2.to_le_bytes());
    code.extend(REP_OUTSB);
    code
}

/// Returns code that does so for ever: `jmp` back to its start.
pub(crate) fn say_for_ever(len: usize) -> Vec<u8> {
    let mut code = say(len);
    let back = i8::try_from(code.len() + 2).unwrap();
    code.extend([0xeb, (-back).cast_unsigned()]);
    code
}

/// Returns code that writes a byte to COM3, once or for ever.
pub(crate) fn ring_folders(for_ever: bool) -> Vec<u8> {
    let mut code = vec![0x66, 0xba]; // mov dx, COM3
    code.extend(COM3.to_le_bytes());
    code.push(0xee); // out dx, al
    if for_ever {
        code.extend([0xeb, 0xfd]); // jmp back to it
    }
    code
}

/// Returns code that counts at an address for ever, and rings the bell after each 256.
pub(crate) fn count_for_ever(address: u64) -> Vec<u8> {
    [
        &[0xff, 0x04, 0x25][..], // inc dword [address]
        &u32::try_from(address).unwrap().to_le_bytes(),
        &[0xfe, 0xc0], // inc al
        &[0x75, 0xf5], // jnz back to the start
        &[0xee],       // out dx, al
        &[0xeb, 0xf2], // jmp back to the start
    ]
    .concat()
}

/// Returns code that takes all that is in the ring to the guest and rings the bell, for ever.
pub(crate) fn take_for_ever() -> Vec<u8> {
    let word = |word: Word| DIRECTORY + word.offset(Direction::ToGuest) as u64;
    let address = |address: u64| u32::try_from(address).unwrap().to_le_bytes();
    [
        &[0x8b, 0x04, 0x25][..], // mov eax, [produced]
        &address(word(Word::Produced)),
        &[0x89, 0x04, 0x25], // mov [consumed], eax
        &address(word(Word::Consumed)),
        &[0x66, 0xba], // mov dx, COM2
        &COM2.to_le_bytes(),
        &[0xee],       // out dx, al
        &[0xeb, 0xeb], // jmp back to the start
    ]
    .concat()
}
