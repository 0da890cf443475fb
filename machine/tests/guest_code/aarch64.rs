//! arm64's machine code of hostile guests. (Arm ARM, "A64 Base Instruction Descriptions".)
//!
//! Their MMU is off, so that what they read and write isn't cached. KVM's emulators have no caches, and processors from Armv8.4 on cache it
//! nevertheless (FEAT_S2FWB).

use minivm_guest::channel::ring::{Direction, Word};
use minivm_guest::channel::{COM2, COM3};
use minivm_vmm::layout;

use super::{DIRECTORY, WORDS};

/// The first address of RAM.
pub(crate) const RAM: u64 = layout::RAM.0;

/// `b .`
pub(crate) const LOOP: [u8; 4] = 0x1400_0000_u32.to_le_bytes();

/// Bytes of an Image's header.
const HEADER: usize = 64;

const LOAD_BYTE_X1_NEXT: u32 = 0x3840_1420; // ldrb w0, [x1], #1
const LOAD_X1: u32 = 0xb940_0020; // ldr w0, [x1]
const STORE_X1: u32 = 0xb900_0020; // str w0, [x1]
const STORE_X2: u32 = 0xb900_0040; // str w0, [x2]
const STORE_BYTE_X3: u32 = 0x3900_0060; // strb w0, [x3]
const COUNT_UP: u32 = 0x1100_0400; // add w0, w0, #1
const COUNT_DOWN_X2: u32 = 0xf100_0442; // subs x2, x2, #1
const BACK_3_IF_NOT_ZERO: u32 = 0x54ff_ffa1; // b.ne .-12

/// Returns a kernel's file of this code, with bytes at addresses: an Image, whose first instruction jumps over its header.
pub(crate) fn kernel(code: &[&[u8]], data: &[(u64, &[u8])]) -> Vec<u8> {
    let mut file = vec![0; HEADER];
    file[..4].copy_from_slice(&back(-16).to_le_bytes());
    file[56..60].copy_from_slice(b"ARM\x64");
    file.extend(code.concat());
    for (address, bytes) in data.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        let at = usize::try_from(address - layout::KERNEL.0).unwrap();
        file.resize(file.len().max(at + bytes.len()), 0);
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let size = file.len() as u64;
    file[16..24].copy_from_slice(&size.to_le_bytes());
    file
}

/// Returns code that writes `len` bytes from WORDS on to COM2.
pub(crate) fn say(len: usize) -> Vec<u8> {
    words(&say_words(len))
}

/// Returns code that does so for ever.
pub(crate) fn say_for_ever(len: usize) -> Vec<u8> {
    let mut code = say_words(len);
    code.push(back(code.len()));
    words(&code)
}

fn say_words(len: usize) -> Vec<u32> {
    assert!(len > 0, "the loop looks behind each byte");
    let once = [
        LOAD_BYTE_X1_NEXT,
        STORE_BYTE_X3,
        COUNT_DOWN_X2,
        BACK_3_IF_NOT_ZERO,
    ];
    [set(1, WORDS), set(2, len as u64), set(3, COM2)]
        .concat()
        .into_iter()
        .chain(once)
        .collect()
}

/// Returns code that writes a byte to COM3, once or for ever.
pub(crate) fn ring_folders(for_ever: bool) -> Vec<u8> {
    let [low, high] = set(3, COM3);
    let mut code = vec![low, high, STORE_BYTE_X3];
    code.extend(for_ever.then(|| back(1)));
    words(&code)
}

/// Returns code that counts at an address for ever, and rings the bell each time.
pub(crate) fn count_for_ever(address: u64) -> Vec<u8> {
    let [low, high] = set(1, address);
    words(&[
        low,
        high,
        LOAD_X1,
        COUNT_UP,
        STORE_X1,
        STORE_BYTE_X3,
        back(4),
    ])
}

/// Returns code that takes all that is in the ring to the guest and rings the bell, for ever.
pub(crate) fn take_for_ever() -> Vec<u8> {
    let word = |word: Word| DIRECTORY + word.offset(Direction::ToGuest) as u64;
    let mut code = [
        set(1, word(Word::Produced)),
        set(2, word(Word::Consumed)),
        set(3, COM2),
    ]
    .concat();
    code.extend([LOAD_X1, STORE_X2, STORE_BYTE_X3, back(3)]);
    words(&code)
}

/// Returns instructions that set a register: `movz`, and `movk` of the next 16 bits.
fn set(register: u32, value: u64) -> [u32; 2] {
    let value = u32::try_from(value).unwrap();
    let (low, high) = (value & 0xffff, value >> 16);
    [
        0xd280_0000 | low << 5 | register,
        0xf2a0_0000 | high << 5 | register,
    ]
}

/// Returns a jump back by so many instructions, or forward.
fn back(instructions: impl TryInto<i32>) -> u32 {
    let Ok(instructions) = instructions.try_into() else {
        panic!("a few instructions");
    };
    0x1400_0000 | (-instructions).cast_unsigned() & 0x3ff_ffff
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
