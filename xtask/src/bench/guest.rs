//! The smallest programs that can be measured: bare guests, and an `/init`. All write [`MARK`].

use minivm_guest::channel::{COM2, Hello, MAGIC, ToHost, VERSION};
use minivm_guest::newc::{Archive, Attributes, Error, Node};

/// What a guest prints when it has come as far as is measured.
pub(crate) const MARK: u8 = b'!';

/// Where bare guests are loaded.
const BARE: u64 = 0x10_0000;
/// The length of the code before the messages of [`session`].
const BEFORE_MESSAGES: u32 = 18;
/// `mov dx, 0x3f8; mov al, MARK; out dx, al`
const SHOW_MARK: [u8; 7] = [0x66, 0xba, 0xf8, 0x03, 0xb0, MARK, 0xee];
/// `mov al, 0xfe; out 0x64, al`
const RESET: [u8; 4] = [0xb0, 0xfe, 0xe6, 0x64];
/// `jmp $`
const LOOP: [u8; 2] = [0xeb, 0xfe];

const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Where code stands in the files made here.
const CODE_OFFSET: usize = 0x1000;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// A bare guest: writes the mark to COM1 and resets, or loops for ever if it is not to end. It is the same in 32-bit mode,
/// where QEMU starts it, and in 64-bit mode; if the keyboard controller's reset isn't there, it faults.
pub(crate) fn bare(ends: bool) -> Vec<u8> {
    let mut code = SHOW_MARK.to_vec();
    if ends {
        code.extend(RESET);
        code.extend([0x0f, 0x0b]); // ud2
    }
    code.extend(LOOP);
    elf(BARE, &code, true)
}

/// A bare guest that reads so many times from a port where no device is, each time an exit to the monitor; then it writes the mark and
/// resets.
pub(crate) fn exits(count: u32) -> Vec<u8> {
    let mut code = vec![0xb9]; // mov ecx, …
    code.extend(count.to_le_bytes());
    code.extend([0x66, 0xba, 0x34, 0x12]); // mov dx, 0x1234
    code.extend([0xec, 0xff, 0xc9, 0x75, 0xfb]); // in al, dx; dec ecx; jnz back to the in
    code.extend(SHOW_MARK);
    code.extend(RESET);
    elf(BARE, &code, true)
}

/// A bare guest that does as an init: it sends the messages of a command that has started and writes the mark, and loops for ever.
pub(crate) fn session() -> Vec<u8> {
    let hello = Hello {
        version: VERSION,
        rings: None,
    };
    let mut messages = MAGIC.to_vec();
    for message in [
        ToHost::Hello(hello),
        ToHost::Started,
        ToHost::Stdout(&[MARK]),
    ] {
        message.encode(&mut messages);
    }
    let at = u32::try_from(BARE).expect("1 MiB") + BEFORE_MESSAGES;
    let mut code = vec![0xbe]; // mov esi, the messages
    code.extend(at.to_le_bytes());
    code.push(0xb9); // mov ecx, their length
    code.extend(u32::try_from(messages.len()).expect("small").to_le_bytes());
    code.extend([0x66, 0xba]); // mov dx, COM2
    code.extend(COM2.to_le_bytes());
    code.extend([0xf3, 0x6e]); // rep outsb
    code.extend(LOOP);
    code.extend(messages);
    elf(BARE, &code, true)
}

/// An initramfs with an `/init` of a few bytes, which writes the mark to the console and powers off.
pub(crate) fn initramfs() -> Result<Vec<u8>, Error> {
    let program = elf(0x40_0000, &init_code(), false);
    let mut archive = Archive::new(Vec::new());
    archive.directory("dev", Attributes::new(0o755))?;
    let console = Node::CharDevice { major: 5, minor: 1 };
    archive.node("dev/console", console, Attributes::new(0o600))?;
    let size = program.len() as u64;
    archive.file("init", Attributes::new(0o755), size, &program[..])?;
    archive.finish()
}

/// `write(1, "!\n", 2)`, `reboot(LINUX_REBOOT_CMD_POWER_OFF)`.
#[rustfmt::skip]
fn init_code() -> Vec<u8> {
    let rest = [
        0xba, 0x02, 0x00, 0x00, 0x00, //    mov edx, 2
        0x0f, 0x05, //                      syscall
        0xb8, 0xa9, 0x00, 0x00, 0x00, //    mov eax, 169 (reboot)
        0xbf, 0xad, 0xde, 0xe1, 0xfe, //    mov edi, LINUX_REBOOT_MAGIC1
        0xbe, 0x69, 0x19, 0x12, 0x28, //    mov esi, LINUX_REBOOT_MAGIC2
        0xba, 0xdc, 0xfe, 0x21, 0x43, //    mov edx, LINUX_REBOOT_CMD_POWER_OFF
        0x0f, 0x05, //                      syscall
        0xeb, 0xfe, //                      jmp $
    ];
    let mark_is_behind = u8::try_from(rest.len()).expect("a few bytes");
    let mut code = vec![
        0xb8, 0x01, 0x00, 0x00, 0x00, //    mov eax, 1 (write)
        0xbf, 0x01, 0x00, 0x00, 0x00, //    mov edi, 1
        0x48, 0x8d, 0x35, mark_is_behind, 0x00, 0x00, 0x00, // lea rsi, [rip + the mark]
    ];
    code.extend(rest);
    code.extend([MARK, b'\n']);
    code
}

/// An executable of one segment, loaded and entered at `address`. With a PVH note QEMU can boot it as a kernel
/// (Xen's `docs/misc/pvh.pandoc`, `XEN_ELFNOTE_PHYS32_ENTRY`).
fn elf(address: u64, code: &[u8], pvh: bool) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0")] {
        note.extend(word.to_le_bytes());
    }
    note.extend((address & 0xffff_ffff).to_le_bytes());
    note.truncate(20);
    let note_offset = ELF_HEADER + 2 * PROGRAM_HEADER;

    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes()); // an executable, for x86-64
    }
    file.extend(1u32.to_le_bytes());
    for word in [address, ELF_HEADER as u64, 0] {
        file.extend(word.to_le_bytes()); // entry, program headers, no sections
    }
    file.extend(0u32.to_le_bytes());
    for half in [ELF_HEADER, PROGRAM_HEADER, 1 + usize::from(pvh), 64, 0, 0] {
        file.extend(u16::try_from(half).expect("small").to_le_bytes());
    }
    file.extend(program_header(
        PT_LOAD,
        CODE_OFFSET,
        address,
        code.len(),
        0x1000,
    ));
    file.extend(program_header(PT_NOTE, note_offset, 0, note.len(), 4));
    file.extend(note);
    file.resize(CODE_OFFSET, 0);
    file.extend(code);
    file
}

fn program_header(kind: u32, offset: usize, address: u64, size: usize, align: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(kind.to_le_bytes());
    header.extend(5u32.to_le_bytes()); // readable and executable
    for word in [
        offset as u64,
        address,
        address,
        size as u64,
        size as u64,
        align,
    ] {
        header.extend(word.to_le_bytes());
    }
    header
}
