//! Kernels' files made on the spot: ELF files of bare machine code, bzImages of nothing, and everything that can be wrong
//! with them.

/// A segment of an [`Elf`].
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its type: 1 to be loaded, 4 a note.
    pub kind: u32,
    /// Its physical address.
    pub address: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its size in memory.
    pub memory_size: u64,
}

impl Segment {
    /// A segment that is loaded to `address`.
    pub fn new(address: u64, bytes: &[u8]) -> Self {
        Segment {
            kind: 1,
            address,
            bytes: bytes.to_vec(),
            memory_size: bytes.len() as u64,
        }
    }
}

/// An ELF file of x86-64, with all of its header's fields that matter open to change.
#[derive(Clone, Debug)]
pub struct Elf {
    /// 2 for 64 bits.
    pub class: u8,
    /// 1 for little endian. The fields are little endian all the same, but `machine`.
    pub data: u8,
    /// 62 for x86-64.
    pub machine: u16,
    /// Where to start.
    pub entry: u64,
    /// What to load.
    pub segments: Vec<Segment>,
}

/// Where [`Elf::of_code`] puts the code: 1 MiB.
pub const CODE: u64 = 1 << 20;

/// Where the segments' bytes begin in the file of an [`Elf`] of at most sixteen segments.
pub const ELF_DATA: usize = 0x400;

impl Elf {
    /// A kernel that is nothing but `code`.
    pub fn of_code(code: &[&[u8]]) -> Self {
        Elf {
            class: 2,
            data: 1,
            machine: 62,
            entry: CODE,
            segments: vec![Segment::new(CODE, &code.concat())],
        }
    }

    /// The file.
    ///
    /// # Panics
    ///
    /// If there are more than sixteen segments.
    pub fn bytes(&self) -> Vec<u8> {
        let count = u16::try_from(self.segments.len()).expect("a few segments");
        let mut file = vec![0; ELF_DATA];
        let machine = match self.data {
            2 => self.machine.to_be_bytes(),
            _ => self.machine.to_le_bytes(),
        };
        put(
            &mut file,
            0,
            &[0x7f, b'E', b'L', b'F', self.class, self.data, 1],
        );
        put(&mut file, 16, &2_u16.to_le_bytes());
        put(&mut file, 18, &machine);
        put(&mut file, 20, &1_u32.to_le_bytes());
        put(&mut file, 24, &self.entry.to_le_bytes());
        put(&mut file, 32, &64_u64.to_le_bytes());
        put(&mut file, 52, &64_u16.to_le_bytes());
        put(&mut file, 54, &56_u16.to_le_bytes());
        put(&mut file, 56, &count.to_le_bytes());
        for (index, segment) in self.segments.iter().enumerate() {
            let header = 64 + 56 * index;
            let offset = file.len() as u64;
            let file_size = segment.bytes.len() as u64;
            put(&mut file, header, &segment.kind.to_le_bytes());
            let fields = [
                (8, offset),
                (16, segment.address),
                (24, segment.address),
                (32, file_size),
                (40, segment.memory_size),
            ];
            for (at, field) in fields {
                put(&mut file, header + at, &field.to_le_bytes());
            }
            file.extend(&segment.bytes);
        }
        file
    }
}

/// A bzImage, with all of its header's fields that matter open to change.
#[derive(Clone, Debug)]
pub struct BzImage {
    /// The boot protocol's version: 0x020f for 2.15.
    pub version: u16,
    /// Bit 0: there is a 64-bit entry.
    pub xloadflags: u16,
    /// Bit 0: it is loaded above 1 MiB.
    pub loadflags: u8,
    /// The most bytes of a command line that it takes.
    pub cmdline_size: u32,
    /// Where it wants to be.
    pub pref_address: u64,
    /// What it needs there.
    pub init_size: u32,
    /// Bytes of the kernel proper that the file has.
    pub payload: usize,
    /// Bytes of the kernel proper that the header promises, a multiple of 16.
    pub promised: u32,
}

impl Default for BzImage {
    /// One that can be loaded, and does nothing of use.
    fn default() -> Self {
        BzImage {
            version: 0x020f,
            xloadflags: 1,
            loadflags: 1,
            cmdline_size: 2047,
            pref_address: 16 << 20,
            init_size: 1 << 20,
            payload: 0x1000,
            promised: 0x1000,
        }
    }
}

impl BzImage {
    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut file = vec![0; 1024 + self.payload];
        put(&mut file, 0x1f1, &[1]);
        put(&mut file, 0x1f4, &(self.promised / 16).to_le_bytes());
        put(&mut file, 0x1fe, &[0x55, 0xaa]);
        put(&mut file, 0x202, b"HdrS");
        put(&mut file, 0x206, &self.version.to_le_bytes());
        put(&mut file, 0x211, &[self.loadflags]);
        put(&mut file, 0x236, &self.xloadflags.to_le_bytes());
        put(&mut file, 0x238, &self.cmdline_size.to_le_bytes());
        put(&mut file, 0x258, &self.pref_address.to_le_bytes());
        put(&mut file, 0x260, &self.init_size.to_le_bytes());
        file
    }
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}
