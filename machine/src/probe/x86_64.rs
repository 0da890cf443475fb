//! The guest that tests a host's KVM: it does the first things that every kernel does. It maps a page for user mode, sets the
//! system call entry up, goes to ring 3, and comes back with SYSCALL. Back in ring 0 it writes a byte to COM1, which ring 3
//! could not do.

use minivm_vmm::layout;

/// The byte that the guest writes when it has come through.
pub(crate) const DONE: u8 = b'k';

/// The guest's code. It has two labels, whose addresses depend on what stands before them.
pub(crate) fn guest() -> Vec<u8> {
    let user = layout::HIGH_RAM.0 + kernel_part(0, 0).len() as u64;
    let entry = user + USER_PART.len() as u64;
    let low_half = |address: u64| u32::try_from(address).expect("just above 1 MiB");
    [
        &kernel_part(low_half(user), low_half(entry))[..],
        &USER_PART,
        &ENTRY_PART,
    ]
    .concat()
}

/// Ring 0: opens the first 2 MiB to ring 3, sets `entry` as the target of SYSCALL, and goes to `user`.
#[rustfmt::skip]
fn kernel_part(user: u32, entry: u32) -> Vec<u8> {
    let (user, entry) = (user.to_le_bytes(), entry.to_le_bytes());
    [
        &[0x48, 0x83, 0x0c, 0x25, 0x00, 0x90, 0x00, 0x00, 0x04][..], // or qword [PML4], 4: user
        &[0x48, 0x83, 0x0c, 0x25, 0x00, 0xa0, 0x00, 0x00, 0x04],     // or qword [PDPT], 4
        &[0x48, 0x83, 0x0c, 0x25, 0x00, 0xb0, 0x00, 0x00, 0x04],     // or qword [PD], 4
        &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8],                       // mov rax, cr3; mov cr3, rax
        &[0xb9, 0x80, 0x00, 0x00, 0xc0],                             // mov ecx, EFER
        &[0x0f, 0x32, 0x83, 0xc8, 0x01, 0x0f, 0x30],                 // rdmsr; or eax, SCE; wrmsr
        &[0xb9, 0x81, 0x00, 0x00, 0xc0, 0x31, 0xc0],                 // mov ecx, STAR; xor eax, eax
        &[0xba, 0x10, 0x00, 0x23, 0x00, 0x0f, 0x30],                 // mov edx, 0x230010 (the selectors); wrmsr
        &[0xb9, 0x82, 0x00, 0x00, 0xc0, 0xb8], &entry,               // mov ecx, LSTAR; mov eax, entry
        &[0x31, 0xd2, 0x0f, 0x30],                                   // xor edx, edx; wrmsr
        &[0xb9], &user,                                              // mov ecx, user
        &[0x41, 0xbb, 0x02, 0x00, 0x00, 0x00],                       // mov r11d, 2 (RFLAGS)
        &[0x48, 0x0f, 0x07],                                         // sysretq
    ]
    .concat()
}

/// Ring 3.
const USER_PART: [u8; 4] = [
    0x0f, 0x05, // syscall
    0xeb, 0xfe, // jmp $
];

/// Ring 0 again.
const ENTRY_PART: [u8; 11] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, DONE, //             mov al, DONE
    0xee, //                   out dx, al
    0xb0, 0xfe, 0xe6, 0x64, // mov al, 0xfe; out 0x64, al
];
