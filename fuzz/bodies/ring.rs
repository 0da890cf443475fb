//! Any bytes as what the other side does to the rings in guest memory, beside a host that uses them.

use std::cell::RefCell;

use minivm_guest::channel::ring::{Consumer, Corrupt, Memory, Producer, Word};

/// A ring's bytes.
const SIZE: u32 = 16;
const WORDS: [Word; 4] = [
    Word::Produced,
    Word::Consumed,
    Word::WantsData,
    Word::WantsRoom,
];

/// A ring that ends where it ends: an access beyond it panics.
#[derive(Default)]
struct Ring {
    bytes: RefCell<[u8; SIZE as usize]>,
    words: RefCell<[u32; 4]>,
}

impl Memory for &Ring {
    fn size(&self) -> u32 {
        SIZE
    }

    fn load(&self, word: Word) -> u32 {
        self.words.borrow()[word as usize]
    }

    fn store(&self, word: Word, value: u32) {
        self.words.borrow_mut()[word as usize] = value;
    }

    fn read(&self, offset: u32, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes.borrow()[offset as usize..][..into.len()]);
    }

    fn write(&self, offset: u32, from: &[u8]) {
        self.bytes.borrow_mut()[offset as usize..][..from.len()].copy_from_slice(from);
    }
}

pub(crate) fn run(data: &[u8]) {
    let rings = [Ring::default(), Ring::default()];
    let (mut producer, mut consumer) = (Producer::new(&rings[0]), Consumer::new(&rings[1]));
    for step in data.chunks_exact(4) {
        let (mut buffer, len) = ([step[1]; 32], usize::from(step[2] % 32));
        let ring = &rings[usize::from(step[1] % 2)];
        let word = WORDS[usize::from(step[2] % 4)];
        let number = u32::from_le_bytes([step[3], step[2] >> 4, step[1] >> 6, step[0] >> 4]);
        let moved = match step[0] % 8 {
            0 => producer.push(&buffer[..len]).map(|moved| moved.bytes),
            1 => consumer.pop(&mut buffer[..len]).map(|moved| moved.bytes),
            2 => producer.sleep().map(|_| 0),
            3 => consumer.sleep().map(|_| 0),
            other => {
                match other {
                    4 => ring.write((step[3] % 16).into(), &[step[2]]),
                    5 => ring.store(word, number),
                    // Near the position that is there: what a sound side would write.
                    _ => ring.store(word, ring.load(word).wrapping_add(number % 20)),
                }
                Ok(0)
            }
        };
        match moved {
            Ok(bytes) => assert!(bytes <= len.min(SIZE as usize)),
            Err(Corrupt {
                produced,
                consumed,
                size,
            }) => assert!(produced.wrapping_sub(consumed) > size),
        }
    }
}
