//! A guest that works through a table of accesses: to ports, to memory-mapped registers, to MSRs.
//!
//! The host writes the table into guest memory, and reads from it afterwards what each access gave. An access that faults is noted,
//! and the guest goes on with the next one.

use minivm_vmm::{Builder, Config, Kernel, Memory, Outcome, Result, layout};

use super::run_to_end;

/// An instruction, or a short sequence around one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `out dx, al`, `ax` or `eax`.
    Out(Width),
    /// `in al`, `ax` or `eax`, `dx`.
    In(Width),
    /// `rep outsb`, `outsw` or `outsd`, of [`STRING`] units.
    Outs(Width),
    /// `rep insb`, `insw` or `insd`, of [`STRING`] units.
    Ins(Width),
    /// `mov [rdx], al`, `ax`, `eax` or `rax`.
    Store(Width),
    /// `mov al`, `ax`, `eax` or `rax`, `[rdx]`.
    Load(Width),
    /// `wrmsr`.
    SetMsr,
    /// `rdmsr`.
    GetMsr,
}

/// The width of an access in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    One,
    Two,
    Four,
    Eight,
}

/// The widths of accesses to ports.
pub(crate) const OF_PORTS: [Width; 3] = [Width::One, Width::Two, Width::Four];
/// The widths of accesses to memory.
pub(crate) const OF_MEMORY: [Width; 4] = [Width::One, Width::Two, Width::Four, Width::Eight];

/// An access: to a port, an address or an MSR.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) kind: Kind,
    pub(crate) at: u64,
    /// The value that is written.
    pub(crate) value: u64,
}

/// What an access came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// The guest ended before it.
    NotReached,
    /// It went through: the register afterwards, or the first bytes that a string read.
    Value(u64),
    /// It faulted.
    Faulted,
}

/// The result of a guest.
pub(crate) struct Driven {
    pub(crate) outcome: Result<Outcome>,
    pub(crate) done: Vec<Done>,
}

/// Units of a string instruction.
pub(crate) const STRING: u8 = 3;
/// The bytes that string instructions write.
pub(crate) const STRING_BYTE: u8 = 0x5a;

const MEMORY: u64 = 64 << 20;
/// The guest's memory map.
const IDT: u64 = 0x1_1000;
const IDTR: u64 = 0x1_2000;
const STACK: u32 = 0x1_4000;
const WRITTEN: u32 = 0x1_5000;
const READ: u32 = 0x1_6000;
/// Page directories, one for each GiB that is mapped beside the first.
const DIRECTORIES: u64 = 0x3_0000;
const PDPT: u64 = 0xa000;
/// Bytes from the code's start to its pieces. MSRs that hold an address of one bit make KVM write to the first of them.
const NEXT: usize = 0x400;
const STORE: usize = 0x440;
const FAULT: usize = 0x480;
const END: usize = 0x4c0;
const KINDS: usize = 0x500;
const KIND: usize = 32;
const TABLE: u64 = 0x20_0000;
/// Bytes of an access in the table: its code's address, what it accesses, its value, and what it came to.
const ENTRY: usize = 32;

/// The most accesses of one guest.
pub(crate) const ACCESSES_MAX: usize = 1_900_000;

/// Runs a guest that makes these accesses, with the GiB of each address mapped to itself, and then resets.
pub(crate) fn drive(accesses: &[Access]) -> Driven {
    assert!(accesses.len() <= ACCESSES_MAX);
    let config = Config {
        memory: MEMORY,
        com3: true,
        ..Config::new(Kernel::Code(code(accesses.len())))
    };
    let machine = Builder::new(config).build().unwrap();
    let memory = machine.memory();
    write_descriptors(&memory);
    map(&memory, accesses);
    let table: Vec<u8> = accesses.iter().flat_map(entry).collect();
    memory.write(TABLE, &table).unwrap();
    let outcome = run_to_end(machine);
    let mut table = vec![0; table.len()];
    memory.read(TABLE, &mut table).unwrap();
    let done = table.chunks_exact(ENTRY).map(|entry| {
        let value = u64::from_le_bytes(entry[16..24].try_into().unwrap());
        match entry[24] {
            0 => Done::NotReached,
            1 => Done::Value(value),
            2 => Done::Faulted,
            other => panic!("the table was written over: {other}"),
        }
    });
    Driven {
        outcome,
        done: done.collect(),
    }
}

fn entry(access: &Access) -> [u8; ENTRY] {
    let code = layout::HIGH_RAM.0 + (KINDS + KIND * access.kind.number()) as u64;
    let mut entry = [0; ENTRY];
    for (slot, word) in entry
        .chunks_exact_mut(8)
        .zip([code, access.at, access.value])
    {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    entry
}

impl Width {
    /// The width in bytes.
    pub(crate) fn bytes(self) -> usize {
        1 << self as usize
    }

    /// The mask of a value of this width.
    pub(crate) fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }

    /// An instruction with this width, given its opcode for one byte: one more is for all others, which prefixes tell apart.
    fn instruction(self, repeat: bool, opcode: u8, modrm: &[u8]) -> Vec<u8> {
        let mut code = match self {
            Width::Two => vec![0x66],
            _ => Vec::new(),
        };
        code.extend(repeat.then_some(0xf3));
        code.extend((self == Width::Eight).then_some(0x48));
        code.push(opcode + u8::from(self != Width::One));
        code.extend(modrm);
        code
    }
}

impl Kind {
    fn all() -> impl Iterator<Item = Kind> {
        let ports = [Kind::Out, Kind::In, Kind::Outs, Kind::Ins].map(|kind| OF_PORTS.map(kind));
        let memory = [Kind::Store, Kind::Load].map(|kind| OF_MEMORY.map(kind));
        let kinds = ports.concat().into_iter().chain(memory.concat());
        kinds.chain([Kind::SetMsr, Kind::GetMsr])
    }

    fn number(self) -> usize {
        Kind::all().position(|kind| kind == self).unwrap()
    }

    /// Its code: RDX has the address, RAX the value, ECX the length of a string.
    fn code(self) -> Vec<u8> {
        match self {
            Kind::Out(width) => width.instruction(false, 0xee, &[]),
            Kind::In(width) => width.instruction(false, 0xec, &[]),
            Kind::Outs(width) => {
                let set = [&[0xbe][..], &WRITTEN.to_le_bytes()].concat(); // mov esi, WRITTEN
                [set, width.instruction(true, 0x6e, &[])].concat()
            }
            Kind::Ins(width) => {
                let set = [&[0xbf][..], &READ.to_le_bytes()].concat(); // mov edi, READ
                let get = [&[0x48, 0x8b, 0x04, 0x25][..], &READ.to_le_bytes()].concat(); // mov rax, [READ]
                [set, width.instruction(true, 0x6c, &[]), get].concat()
            }
            Kind::Store(width) => width.instruction(false, 0x88, &[0x02]),
            Kind::Load(width) => width.instruction(false, 0x8a, &[0x02]),
            // mov ecx, edx; mov rdx, rax; shr rdx, 32; wrmsr
            Kind::SetMsr => vec![
                0x89, 0xd1, 0x48, 0x89, 0xc2, 0x48, 0xc1, 0xea, 0x20, 0x0f, 0x30,
            ],
            // mov ecx, edx; rdmsr; shl rdx, 32; or rax, rdx
            Kind::GetMsr => vec![
                0x89, 0xd1, 0x0f, 0x32, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0,
            ],
        }
    }
}

/// The guest's code. R8 points to the present access, R9 behind the last one.
fn code(accesses: usize) -> Vec<u8> {
    let word = |number: u64| u32::try_from(number).unwrap().to_le_bytes();
    let mut code = Vec::new();
    let mut put = |at: usize, parts: &[&[u8]], to: Option<usize>| {
        assert!(code.len() <= at, "a piece of code is too long");
        code.resize(at, 0x90);
        parts.iter().for_each(|part| code.extend(*part));
        if let Some(to) = to {
            code.push(0xe9); // jmp to
            let from = i64::try_from(code.len() + 4).unwrap();
            let distance = i32::try_from(i64::try_from(to).unwrap() - from).unwrap();
            code.extend(distance.to_le_bytes());
        }
    };
    let start = [
        &[0xbc][..], // mov esp, STACK
        &STACK.to_le_bytes(),
        &[0x0f, 0x01, 0x1c, 0x25], // lidt [IDTR]
        &word(IDTR),
        &[0x41, 0xb8], // mov r8d, the entry before the first
        &word(TABLE - ENTRY as u64),
        &[0x41, 0xb9], // mov r9d, the end
        &word(TABLE + (ENTRY * accesses) as u64),
    ];
    put(0, &start, Some(NEXT));
    let next = [
        &[0x49, 0x83, 0xc0, 0x20][..], // add r8, 32
        &[0x4d, 0x39, 0xc8],           // cmp r8, r9
        &[0x75, 0x05],                 // jne over the next jump
    ];
    put(NEXT, &next, Some(END));
    let load = [
        &[0x49, 0x8b, 0x50, 0x08][..],     // mov rdx, [r8 + 8]
        &[0x49, 0x8b, 0x40, 0x10],         // mov rax, [r8 + 16]
        &[0xb9, STRING, 0x00, 0x00, 0x00], // mov ecx, STRING
        &[0x41, 0xff, 0x20],               // jmp [r8]
    ];
    put(NEXT + 14, &load, None);
    // mov [r8 + 16], rax; mov byte [r8 + 24], 1
    let store = [0x49, 0x89, 0x40, 0x10, 0x41, 0xc6, 0x40, 0x18, 0x01];
    put(STORE, &[&store], Some(NEXT));
    let fault = [
        &[0xbc][..], // mov esp, STACK
        &STACK.to_le_bytes(),
        &[0x41, 0xc6, 0x40, 0x18, 0x02], // mov byte [r8 + 24], 2
    ];
    put(FAULT, &fault, Some(NEXT));
    put(
        END,
        &[&minivm_tests::code::RESET, &minivm_tests::code::LOOP],
        None,
    );
    for kind in Kind::all() {
        put(KINDS + KIND * kind.number(), &[&kind.code()], Some(STORE));
    }
    code
}

/// Writes the interrupt descriptor table, in which every exception leads to one place, and the bytes for string instructions.
fn write_descriptors(memory: &Memory) {
    let fault = layout::HIGH_RAM.0 + FAULT as u64;
    // Offset, selector of the code, a present interrupt gate (AMD APM vol. 2, "Interrupt and Trap Gates").
    let gate = fault & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (fault >> 16 & 0xffff) << 48;
    let gate = [gate.to_le_bytes(), [0; 8]].concat();
    memory.write(IDT, &gate.repeat(32)).unwrap();
    memory
        .write(IDTR, &(32 * 16 - 1_u16).to_le_bytes())
        .unwrap();
    memory.write(IDTR + 2, &IDT.to_le_bytes()).unwrap();
    memory.write(WRITTEN.into(), &[STRING_BYTE; 64]).unwrap();
}

/// Maps each GiB that is accessed to itself, in pages of 2 MiB.
fn map(memory: &Memory, accesses: &[Access]) {
    let is_memory = |access: &&Access| matches!(access.kind, Kind::Store(_) | Kind::Load(_));
    let addresses = accesses.iter().filter(is_memory).map(|access| access.at);
    let mut mapped: Vec<u64> = addresses
        .flat_map(|at| [at >> 30, (at + 7) >> 30])
        .collect();
    mapped.sort_unstable();
    mapped.dedup();
    for (directory, gib) in (DIRECTORIES..)
        .step_by(0x1000)
        .zip(mapped.into_iter().filter(|gib| *gib != 0))
    {
        assert!(
            gib < 512 && directory < 0x9_0000,
            "there is no room to map it"
        );
        let pages = (gib << 30..).step_by(2 << 20).take(512);
        let table: Vec<u8> = pages.flat_map(|page| (page | 0x83).to_le_bytes()).collect();
        memory.write(directory, &table).unwrap();
        memory
            .write(PDPT + 8 * gib, &(directory | 3).to_le_bytes())
            .unwrap();
    }
}
