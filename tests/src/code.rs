//! Pieces of machine code, for 64-bit mode with the first GiB mapped to itself.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

/// Writes AL to COM1: `mov dx, 0x3f8; out dx, al`.
pub const SHOW: [u8; 5] = [0x66, 0xba, 0xf8, 0x03, 0xee];

/// Pulses the reset line: `mov al, 0xfe; out 0x64, al`.
pub const RESET: [u8; 4] = [0xb0, 0xfe, 0xe6, 0x64];

/// Loops for ever: `jmp $`.
pub const LOOP: [u8; 2] = [0xeb, 0xfe];

/// Waits on COM1 until there is input.
#[rustfmt::skip]
pub const WAIT: [u8; 23] = [
    0x66, 0xba, 0xf9, 0x03, 0xb0, 0x01, 0xee, // mov dx, 0x3f9; mov al, 1; out dx, al: interrupt on received data
    0x66, 0xba, 0xfc, 0x03, 0xb0, 0x02, 0xee, // mov dx, 0x3fc; mov al, 2; out dx, al: request to send
    0x66, 0xba, 0xfd, 0x03, 0xec,             // again: mov dx, 0x3fd; in al, dx: the line status
    0xa8, 0x01, 0x74, 0xf7,                   // test al, 1; jz again
];

/// Writes a byte to COM1: `mov dx, 0x3f8; mov al, byte; out dx, al`.
pub const fn show(byte: u8) -> [u8; 7] {
    [0x66, 0xba, 0xf8, 0x03, 0xb0, byte, 0xee]
}

/// Maps the 2 MiB around `address` to themselves: only the first GiB is mapped at the start. A page directory of its own,
/// at 0xc000, is hung into the page directory pointer table at 0xa000.
///
/// # Panics
///
/// If `address` is above 512 GiB.
pub fn map(address: u64) -> Vec<u8> {
    let page = address & !0x1f_ffff | 0x83;
    let (directory, entry) = (
        0xa000 + (address >> 30) * 8,
        0xc000 + (address >> 21 & 0x1ff) * 8,
    );
    [
        store(directory, 0xc003),
        store(entry, page & 0xffff_ffff),
        store(entry + 4, page >> 32),
    ]
    .concat()
}

/// `mov dword [address], value`.
fn store(address: u64, value: u64) -> Vec<u8> {
    let low_half = |number: u64| u32::try_from(number).unwrap().to_le_bytes();
    [
        &[0xc7, 0x04, 0x25],
        &low_half(address)[..],
        &low_half(value)[..],
    ]
    .concat()
}

/// Writes `code` to `address`.
///
/// # Panics
///
/// If `address` is above 4 GiB.
pub fn place(address: u64, code: &[u8]) -> Vec<u8> {
    let words = code.chunks(4).map(|word| {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        u64::from_le_bytes(bytes)
    });
    (address..)
        .step_by(4)
        .zip(words)
        .flat_map(|(at, word)| store(at, word))
        .collect()
}

/// Starts the second vCPU in real mode at `page` times 4096, by INIT and SIPI. The local APIC must be mapped.
pub fn wake(page: u8) -> Vec<u8> {
    let send = |command: u8, vector: u8| {
        let mut code = vec![0xbe, 0x00, 0x00, 0xe0, 0xfe]; // mov esi, the local APIC
        code.extend([0xc7, 0x86, 0x10, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01]); // mov dword [rsi + 0x310], APIC 1
        code.extend([
            0xc7, 0x86, 0x00, 0x03, 0x00, 0x00, vector, command, 0x00, 0x00,
        ]); // mov dword [rsi + 0x300], …
        code
    };
    [send(0x45, 0), send(0x46, page)].concat()
}
