//! Pieces of arm64 machine code, as words, for EL1 with the MMU off. (Arm ARM, "A64 Base Instruction Descriptions".)

use minivm_vmm::layout;

/// `hvc #0`, `wfi`, and `b .`.
pub(crate) const HVC: u32 = 0xd400_0002;
pub(crate) const WFI: u32 = 0xd503_207f;
pub(crate) const LOOP: u32 = 0x1400_0000;

/// Functions of PSCI (Arm DEN 0022, "PSCI functions").
pub(crate) const CPU_OFF: u32 = 0x8400_0002;
pub(crate) const CPU_ON: u32 = 0xc400_0003;
pub(crate) const AFFINITY_INFO: u32 = 0xc400_0004;
pub(crate) const SYSTEM_OFF: u32 = 0x8400_0008;
pub(crate) const SYSTEM_RESET: u32 = 0x8400_0009;
pub(crate) const SYSTEM_RESET2: u32 = 0x8400_0012;

/// Registers that `say` and `psci` leave alone begin with this one.
const SCRATCH: u32 = 9;

/// Sets a register.
pub(crate) fn mov(register: u32, value: u64) -> Vec<u32> {
    let half = |number: u32| u32::try_from(value >> (16 * number) & 0xffff).unwrap();
    let movk = |number: u32| 0xf280_0000 | number << 21 | half(number) << 5 | register;
    let rest = (1..4).filter(|number| half(*number) != 0).map(movk);
    [0xd280_0000 | half(0) << 5 | register]
        .into_iter()
        .chain(rest)
        .collect()
}

/// Loads or stores a byte or a word of four at the address in a register.
pub(crate) const fn ldrb(to: u32, address: u32) -> u32 {
    0x3940_0000 | address << 5 | to
}
pub(crate) const fn strb(from: u32, address: u32) -> u32 {
    0x3900_0000 | address << 5 | from
}
pub(crate) const fn ldr(to: u32, address: u32) -> u32 {
    0xb940_0000 | address << 5 | to
}
pub(crate) const fn str(from: u32, address: u32) -> u32 {
    0xb900_0000 | address << 5 | from
}

/// Adds a number below 4096, or subtracts it.
pub(crate) const fn add(register: u32, number: u32) -> u32 {
    0x9100_0000 | number << 10 | register << 5 | register
}
pub(crate) const fn sub(register: u32, number: u32) -> u32 {
    0xd100_0000 | number << 10 | register << 5 | register
}

/// Adds one register to another.
pub(crate) const fn add_register(to: u32, from: u32) -> u32 {
    0x8b00_0000 | from << 16 | to << 5 | to
}

/// `br register`.
pub(crate) const fn br(register: u32) -> u32 {
    0xd61f_0000 | register << 5
}

/// Branches by a number of words: always, or while a register is or isn't zero.
pub(crate) fn b(words: i32) -> u32 {
    LOOP | words.cast_unsigned() & 0x03ff_ffff
}
pub(crate) fn cbz(register: u32, words: i32) -> u32 {
    0xb400_0000 | (words.cast_unsigned() & 0x7_ffff) << 5 | register
}
pub(crate) fn cbnz(register: u32, words: i32) -> u32 {
    0xb500_0000 | (words.cast_unsigned() & 0x7_ffff) << 5 | register
}

/// Writes a byte to COM1.
pub(crate) fn say(byte: u8) -> Vec<u32> {
    let scratch = SCRATCH + 1;
    [mov(scratch, byte.into()), show(scratch)].concat()
}

/// Writes a register's lowest byte to COM1.
pub(crate) fn show(register: u32) -> Vec<u32> {
    [mov(SCRATCH, layout::COM1.0), vec![strb(register, SCRATCH)]].concat()
}

/// Calls PSCI, with arguments in X1 to X3.
pub(crate) fn psci(function: u32) -> Vec<u32> {
    [mov(0, function.into()), vec![HVC]].concat()
}

/// Does `body` `times` times, which leaves the counter register alone.
pub(crate) fn repeat(counter: u32, times: u64, body: &[u32]) -> Vec<u32> {
    let back = -(i32::try_from(body.len()).unwrap() + 1);
    let start = mov(counter, times);
    [&start[..], body, &[sub(counter, 1), cbnz(counter, back)]].concat()
}

/// Sets a handler of exceptions that continues behind the instruction that has raised one. `code` comes behind it, at most 240
/// words; the vectors come behind that.
pub(crate) fn skipping_faults(code: &[u32]) -> Vec<u32> {
    const VECTORS: usize = 0x800 / 4;
    const SAME_LEVEL: usize = 0x200 / 4;
    let set = [
        0x1000_0001 | 0x200 << 5, // adr x1, vectors
        0xd518_c001,              // msr vbar_el1, x1
        0xd503_3fdf,              // isb
    ];
    let mut all = [&set[..], code].concat();
    assert!(all.len() <= VECTORS, "too much code");
    all.resize(VECTORS + SAME_LEVEL, 0);
    all.extend([
        0xd538_4034, // mrs x20, elr_el1
        add(20, 4),
        0xd518_4034, // msr elr_el1, x20
        0xd69f_03e0, // eret
    ]);
    all
}

/// Writes a system register of the kind S3, or reads it: `op1`, `CRn`, `CRm`, `op2`.
pub(crate) const fn msr((op1, crn, crm, op2): System, from: u32) -> u32 {
    0xd518_0000 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | from
}
pub(crate) const fn mrs(to: u32, (op1, crn, crm, op2): System) -> u32 {
    0xd538_0000 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | to
}

/// A system register's number.
pub(crate) type System = (u32, u32, u32, u32);

/// `eor to, to, other`: zero where both are alike.
pub(crate) const fn eor(to: u32, other: u32) -> u32 {
    0xca00_0000 | other << 16 | to << 5 | to
}

/// Writes a word of four to an address.
pub(crate) fn store(address: u64, value: u32) -> Vec<u32> {
    let (at, what) = (SCRATCH + 4, SCRATCH + 5);
    [
        mov(at, address),
        mov(what, value.into()),
        vec![str(what, at)],
    ]
    .concat()
}
