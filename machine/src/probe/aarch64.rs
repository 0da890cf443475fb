//! The guest that tests a host's KVM: it does the first things that every kernel does. It sets the vectors of exceptions, goes to
//! EL0, and comes back by a system call (SVC). Back in EL1 it writes a byte to COM1 and asks PSCI for a reset.

/// The byte that the guest writes when it has come through.
pub(crate) const DONE: u8 = b'k';

/// The offset of the vectors behind the code, which has to be a multiple of 2 KiB, and in them that of the vector of synchronous
/// exceptions that come from EL0 (Arm ARM, "Exception vectors").
const VECTORS: usize = 0x800;
const FROM_EL0: usize = 0x400;

/// The guest's code.
pub(crate) fn guest() -> Vec<u8> {
    let mut code = words(&KERNEL_PART);
    code.resize(VECTORS + FROM_EL0, 0);
    code.extend(words(&VECTOR_PART));
    code
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// EL1, and behind ERET EL0.
const KERNEL_PART: [u32; 8] = [
    0x1000_4001, // adr x1, vectors
    0xd518_c001, // msr vbar_el1, x1
    0x1000_0082, // adr x2, user
    0xd518_4022, // msr elr_el1, x2
    0xd518_401f, // msr spsr_el1, xzr (EL0)
    0xd69f_03e0, // eret
    // user:
    0xd400_0001, // svc #0
    0x1400_0000, // b .
];

/// EL1 again.
const VECTOR_PART: [u32; 7] = [
    0x5280_0003 | (DONE as u32) << 5, // mov w3, DONE
    0xd2a1_2004,                      // mov x4, 0x9000000 (COM1)
    0x3900_0083,                      // strb w3, [x4]
    0x5280_0120,                      // mov w0, 9
    0x72b0_8000,                      // movk w0, 0x8400, lsl 16 (SYSTEM_RESET)
    0xd400_0002,                      // hvc #0
    0x1400_0000,                      // b .
];
