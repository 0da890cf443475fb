//! Two rings of bytes in guest RAM, one for each direction, and a way to wait for the other side without polling.
//!
//! Init takes ordinary pages of its own, pins them, and writes their addresses down in one further page, the directory:
//!
//! | offset | content |
//! |---|---|
//! | 0 | [`DIRECTORY_MAGIC`], 8 bytes |
//! | 8 | number of pages a ring, 4 bytes, little endian as all: a power of two, at most [`PAGES_MAX`] |
//! | 16 | in the control channel's directory: the address of that of the folders' rings, 8 bytes, from before the first byte on COM3 |
//! | 64 | the ring to the host: four words, 64 bytes apart (a cache line each) |
//! | 320 | the ring to the guest: likewise |
//! | 1024 | the guest-physical addresses of the pages, 8 bytes each: those of the ring to the host, then those to the guest |
//!
//! The words of a ring are [`Word`]s. The positions count bytes for ever, modulo 2^32; the bytes between them have been produced
//! and not yet consumed. Each position has one writer. Since the other side is hostile, its position is checked on every use: it
//! may claim no more than the ring holds.
//!
//! A side that has to wait sets its word ([`Consumer::sleep`], [`Producer::sleep`]) and then looks once more. A side that has
//! produced or consumed looks whether the other one waits ([`Producer::push`] and [`Consumer::pop`] return that) and only then
//! rings its bell. Both write first and read after, in one total order (`SeqCst`), so that at least one of them sees the other: a
//! bell is never missed, and where both sides are busy there is none.

/// Bytes a page.
pub const PAGE: usize = 4096;
/// The most pages a ring: 128, which is 512 KiB.
pub const PAGES_MAX: usize = 128;
/// The first bytes of a directory.
pub const DIRECTORY_MAGIC: [u8; 8] = *b"rings v1";
/// The offset of the number of pages a ring in the directory.
pub const DIRECTORY_PAGES: usize = 8;
/// The offset of the address of the folders' directory in the control channel's.
pub const DIRECTORY_FOLDERS: usize = 16;
/// The offset of the pages' addresses in the directory.
pub const DIRECTORY_ADDRESSES: usize = 1024;

/// The direction of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the guest to the host.
    ToHost = 0,
    /// From the host to the guest.
    ToGuest = 1,
}

/// A word that the two sides of a ring share besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The number of bytes that were produced. The producer writes it.
    Produced = 0,
    /// The number of bytes that were consumed. The consumer writes it.
    Consumed = 1,
    /// Not zero while the consumer waits for bytes.
    WantsData = 2,
    /// Not zero while the producer waits for room.
    WantsRoom = 3,
}

impl Word {
    /// Returns the word's offset in the directory.
    pub const fn offset(self, direction: Direction) -> usize {
        64 + 256 * direction as usize + 64 * self as usize
    }
}

/// The memory of one ring, as one side sees it: its words and its bytes.
pub trait Memory {
    /// Returns the ring's size in bytes: a power of two.
    fn size(&self) -> u32;
    /// Reads a word (`SeqCst`).
    fn load(&self, word: Word) -> u32;
    /// Writes a word (`SeqCst`).
    fn store(&self, word: Word, value: u32);
    /// Reads from `offset` on; it never runs past the ring's end.
    fn read(&self, offset: u32, into: &mut [u8]);
    /// Writes from `offset` on; it never runs past the ring's end.
    fn write(&self, offset: u32, from: &[u8]);
}

/// The error of a position by which the other side claims more than the ring holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the ring in guest memory is corrupt: produced {produced}, consumed {consumed}, size {size}"
)]
pub struct Corrupt {
    /// The producer's position.
    pub produced: u32,
    /// The consumer's position.
    pub consumed: u32,
    /// The ring's size in bytes.
    pub size: u32,
}

/// The result of an attempt to move bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The number of bytes that were moved.
    pub bytes: usize,
    /// Whether the other side waits for that: the caller rings its bell.
    pub bell: bool,
}

/// The end of a ring that bytes are put in.
#[derive(Debug)]
pub struct Producer<M> {
    memory: M,
    produced: u32,
}

/// The end of a ring that bytes are taken from.
#[derive(Debug)]
pub struct Consumer<M> {
    memory: M,
    consumed: u32,
}

impl<M: Memory> Producer<M> {
    /// Makes the producer of a ring, from its present position on.
    pub fn new(memory: M) -> Self {
        let produced = memory.load(Word::Produced);
        Producer { memory, produced }
    }

    /// Puts in as much of `bytes` as there is room for.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] where the consumer's position is impossible.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Moved, Corrupt> {
        let size = self.memory.size();
        let room = self.room()?;
        let taken = u32::try_from(bytes.len()).map_or(room, |len| len.min(room));
        let bytes = &bytes[..taken as usize];
        let at = self.produced & (size - 1);
        let (first, second) = bytes.split_at(bytes.len().min((size - at) as usize));
        self.memory.write(at, first);
        self.memory.write(0, second);
        let mut bell = false;
        if taken > 0 {
            self.produced = self.produced.wrapping_add(taken);
            self.memory.store(Word::Produced, self.produced);
            bell = self.memory.load(Word::WantsData) != 0;
            if bell {
                self.memory.store(Word::WantsData, 0);
            }
        }
        Ok(Moved {
            bytes: bytes.len(),
            bell,
        })
    }

    /// Announces that this side waits for room. Returns whether it really has to: if not, there is some by now.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] where the consumer's position is impossible.
    pub fn sleep(&mut self) -> Result<bool, Corrupt> {
        self.memory.store(Word::WantsRoom, 1);
        let full = self.room()? == 0;
        if !full {
            self.memory.store(Word::WantsRoom, 0);
        }
        Ok(full)
    }

    fn room(&self) -> Result<u32, Corrupt> {
        let consumed = self.memory.load(Word::Consumed);
        let size = self.memory.size();
        let used = self.produced.wrapping_sub(consumed);
        size.checked_sub(used).ok_or(Corrupt {
            produced: self.produced,
            consumed,
            size,
        })
    }
}

impl<M: Memory> Consumer<M> {
    /// Makes the consumer of a ring, from its present position on.
    pub fn new(memory: M) -> Self {
        let consumed = memory.load(Word::Consumed);
        Consumer { memory, consumed }
    }

    /// Takes out as many bytes as are there and `into` holds.
    ///
    /// A producer that waits for room is woken when half of the ring is free, not for every byte.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] where the producer's position is impossible.
    pub fn pop(&mut self, into: &mut [u8]) -> Result<Moved, Corrupt> {
        let size = self.memory.size();
        let used = self.used()?;
        let taken = u32::try_from(into.len()).map_or(used, |len| len.min(used));
        let into = &mut into[..taken as usize];
        let at = self.consumed & (size - 1);
        let (first, second) = into.split_at_mut(into.len().min((size - at) as usize));
        self.memory.read(at, first);
        self.memory.read(0, second);
        let mut bell = false;
        if taken > 0 {
            self.consumed = self.consumed.wrapping_add(taken);
            self.memory.store(Word::Consumed, self.consumed);
            bell = used - taken <= size / 2 && self.memory.load(Word::WantsRoom) != 0;
            if bell {
                self.memory.store(Word::WantsRoom, 0);
            }
        }
        Ok(Moved {
            bytes: taken as usize,
            bell,
        })
    }

    /// Announces that this side waits for bytes. Returns whether it really has to: if not, there are some by now.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] where the producer's position is impossible.
    pub fn sleep(&mut self) -> Result<bool, Corrupt> {
        self.memory.store(Word::WantsData, 1);
        let empty = self.used()? == 0;
        if !empty {
            self.memory.store(Word::WantsData, 0);
        }
        Ok(empty)
    }

    fn used(&self) -> Result<u32, Corrupt> {
        let produced = self.memory.load(Word::Produced);
        let size = self.memory.size();
        let used = produced.wrapping_sub(self.consumed);
        if used > size {
            return Err(Corrupt {
                produced,
                consumed: self.consumed,
                size,
            });
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minivm_tests::stress::Random;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
    use std::sync::mpsc;

    /// A ring in ordinary memory.
    #[derive(Clone)]
    struct Plain(Arc<(Vec<AtomicU8>, [AtomicU32; 4])>);

    impl Plain {
        fn new(size: usize, start: u32) -> Plain {
            let bytes = (0..size).map(|_| AtomicU8::new(0)).collect();
            let words = [start, start, 0, 0].map(AtomicU32::new);
            Plain(Arc::new((bytes, words)))
        }
    }

    impl Memory for Plain {
        fn size(&self) -> u32 {
            u32::try_from(self.0.0.len()).unwrap()
        }
        fn load(&self, word: Word) -> u32 {
            self.0.1[word as usize].load(SeqCst)
        }
        fn store(&self, word: Word, value: u32) {
            self.0.1[word as usize].store(value, SeqCst);
        }
        fn read(&self, offset: u32, into: &mut [u8]) {
            // Past the end this panics, as memory outside the guest's would be read.
            let bytes = &self.0.0[offset as usize..][..into.len()];
            for (to, from) in into.iter_mut().zip(bytes) {
                *to = from.load(Relaxed);
            }
        }
        fn write(&self, offset: u32, from: &[u8]) {
            for (from, to) in from.iter().zip(&self.0.0[offset as usize..][..from.len()]) {
                to.store(*from, Relaxed);
            }
        }
    }

    #[test]
    fn the_words_fit_before_the_addresses_and_these_into_the_page() {
        assert_eq!(Word::Produced.offset(Direction::ToHost), 64);
        assert_eq!(Word::WantsRoom.offset(Direction::ToGuest), 512);
        const { assert!(512 + 4 <= DIRECTORY_ADDRESSES) };
        const { assert!(DIRECTORY_ADDRESSES + 2 * PAGES_MAX * 8 <= PAGE) };
    }

    #[test]
    fn a_position_that_claims_more_than_the_ring_holds_is_corrupt() {
        let ring = Plain::new(64, 0);
        ring.store(Word::Produced, 65);
        assert!(Consumer::new(ring.clone()).pop(&mut [0; 8]).is_err());
        assert!(Consumer::new(ring.clone()).sleep().is_err());
        let ring = Plain::new(64, 0);
        ring.store(Word::Consumed, 1);
        assert!(Producer::new(ring.clone()).push(b"x").is_err());
        assert!(Producer::new(ring).sleep().is_err());
    }

    #[test]
    fn a_side_that_does_not_wait_gets_no_bell() {
        let ring = Plain::new(64, u32::MAX - 3);
        let (mut producer, mut consumer) = (Producer::new(ring.clone()), Consumer::new(ring));
        assert_eq!(
            producer.push(b"abc"),
            Ok(Moved {
                bytes: 3,
                bell: false
            })
        );
        assert_eq!(consumer.sleep(), Ok(false), "there is something");
        assert_eq!(
            consumer.pop(&mut [0; 64]),
            Ok(Moved {
                bytes: 3,
                bell: false
            })
        );
        assert_eq!(consumer.sleep(), Ok(true));
        assert_eq!(
            producer.push(&[7; 100]),
            Ok(Moved {
                bytes: 64,
                bell: true
            })
        );
        assert_eq!(producer.sleep(), Ok(true));
        assert_eq!(
            consumer.pop(&mut [0; 31]),
            Ok(Moved {
                bytes: 31,
                bell: false
            })
        );
        assert_eq!(
            consumer.pop(&mut [0; 1]),
            Ok(Moved {
                bytes: 1,
                bell: true
            })
        );
        assert_eq!(producer.sleep(), Ok(false), "there is room");
    }

    proptest! {
        #[test]
        fn bytes_come_out_in_order(start: u32, steps in prop::collection::vec((0usize..90, 0usize..90), 1..200)) {
            let ring = Plain::new(64, start);
            let (mut producer, mut consumer) = (Producer::new(ring.clone()), Consumer::new(ring));
            let (mut put, mut got) = (Vec::new(), Vec::new());
            for (write, read) in steps {
                let bytes: Vec<u8> = (0..write).map(|i| u8::try_from((put.len() + i) % 251).unwrap()).collect();
                let moved = producer.push(&bytes).unwrap();
                put.extend_from_slice(&bytes[..moved.bytes]);
                let mut into = vec![0; read];
                let moved = consumer.pop(&mut into).unwrap();
                got.extend_from_slice(&into[..moved.bytes]);
            }
            prop_assert_eq!(&put[..got.len()], &got[..]);
            prop_assert!(put.len() - got.len() <= 64);
        }
    }

    /// Positions that matter: at the start, and around the wrap of 32 bits.
    const STARTS: [u32; 4] = [0, 5, u32::MAX - 3, u32::MAX];

    /// Calls `check` with each ring of a few bytes, own position, other position near it or far from it, and waiting word.
    fn each_small_ring(check: impl Fn(u32, u32, u32, u32)) {
        for size in [1_u32, 2, 4, 8] {
            for own in STARTS
                .iter()
                .flat_map(|start| (0..size).map(|at| start.wrapping_add(at)))
            {
                let near = (0..=4 * size).map(|at| own.wrapping_add(at).wrapping_sub(2 * size));
                let far = [own ^ 1 << 31, own.wrapping_sub(0x100), !own];
                for other in near.chain(far) {
                    check(size, own, other, 0);
                    check(size, own, other, 1);
                }
            }
        }
    }

    /// A small ring whose bytes are their own places, and nothing that is put in.
    fn small_ring(size: u32, [produced, consumed]: [u32; 2], waits: u32) -> Plain {
        let ring = Plain::new(size as usize, 0);
        ring.store(Word::Produced, produced);
        ring.store(Word::Consumed, consumed);
        ring.store(Word::WantsData, waits);
        ring.store(Word::WantsRoom, waits);
        (0..size).for_each(|at| ring.write(at, &[at.to_le_bytes()[0]]));
        ring
    }

    #[test]
    fn a_producer_does_what_is_right_at_every_position_of_small_rings() {
        each_small_ring(|size, own, other, waits| {
            for len in 0..=size + 2 {
                let ring = small_ring(size, [own, other], waits);
                let bytes: Vec<u8> = (100..).take(len as usize).collect();
                let pushed = Producer::new(ring.clone()).push(&bytes);
                let used = own.wrapping_sub(other);
                let mut expected: Vec<u8> = (0..).take(size as usize).collect();
                if used > size {
                    let (produced, consumed) = (own, other);
                    assert_eq!(
                        pushed,
                        Err(Corrupt {
                            produced,
                            consumed,
                            size
                        })
                    );
                } else {
                    let moved = len.min(size - used);
                    for (index, byte) in (0..moved).zip(bytes) {
                        expected[(own.wrapping_add(index) % size) as usize] = byte;
                    }
                    let (bytes, bell) = (moved as usize, moved > 0 && waits != 0);
                    assert_eq!(pushed, Ok(Moved { bytes, bell }));
                    assert_eq!(ring.load(Word::Produced), own.wrapping_add(moved));
                }
                let mut found = vec![0; size as usize];
                ring.read(0, &mut found);
                assert_eq!((found, ring.load(Word::Consumed)), (expected, other));
            }
        });
    }

    #[test]
    fn a_consumer_does_what_is_right_at_every_position_of_small_rings() {
        each_small_ring(|size, own, other, waits| {
            for len in 0..=size + 2 {
                let ring = small_ring(size, [other, own], waits);
                let mut into = vec![0xff; len as usize];
                let popped = Consumer::new(ring.clone()).pop(&mut into);
                let used = other.wrapping_sub(own);
                if used > size {
                    let (produced, consumed) = (other, own);
                    assert_eq!(
                        popped,
                        Err(Corrupt {
                            produced,
                            consumed,
                            size
                        })
                    );
                } else {
                    let moved = len.min(used);
                    let bell = moved > 0 && waits != 0 && used - moved <= size / 2;
                    let bytes = moved as usize;
                    assert_eq!(popped, Ok(Moved { bytes, bell }));
                    assert_eq!(ring.load(Word::Consumed), own.wrapping_add(moved));
                    let at = |index: u32| (own.wrapping_add(index) % size).to_le_bytes()[0];
                    assert!((0..moved).map(at).eq(into[..bytes].iter().copied()));
                    assert!(into[bytes..].iter().all(|byte| *byte == 0xff));
                }
                assert_eq!(ring.load(Word::Produced), other);
            }
        });
    }

    /// The other side is a thread that writes anything anywhere, and positions that look right, while this side works.
    #[test]
    fn a_racing_side_gets_an_error_or_bytes_and_no_more() {
        let ring = Plain::new(64, 0);
        let (stop, mut random) = (AtomicU32::new(0), Random::default());
        let mut scribble = Random::new(random.number());
        let mut number = move || scribble.number().to_le_bytes();
        std::thread::scope(|scope| {
            let (theirs, stopped) = (ring.clone(), &stop);
            scope.spawn(move || {
                let words = [
                    Word::Produced,
                    Word::Consumed,
                    Word::WantsData,
                    Word::WantsRoom,
                ];
                while stopped.load(Relaxed) == 0 {
                    let [kind, which, value, ..] = number();
                    let word = words[usize::from(which) % words.len()];
                    match kind % 4 {
                        0 => theirs.write((value % 64).into(), &[kind]),
                        1 => theirs.store(word, u32::from(value).wrapping_sub(100)),
                        2 => theirs.store(word, theirs.load(word).wrapping_add(value.into())),
                        _ => theirs.store(word, u32::from_le_bytes([value, kind, which, value])),
                    }
                }
            });
            let (mut moved, mut refused) = (0, 0);
            let few = minivm_tests::stress::count(20_000, 10_000_000);
            // Some rounds more, where the threads don't run at once.
            for round in 0.. {
                let mut bytes = [0; 80];
                let bytes = &mut bytes[..random.below(81)];
                let len = bytes.len();
                let result = match round % 4 {
                    0 => Producer::new(ring.clone())
                        .push(bytes)
                        .map(|moved| moved.bytes),
                    1 => Consumer::new(ring.clone())
                        .pop(bytes)
                        .map(|moved| moved.bytes),
                    2 => Producer::new(ring.clone()).sleep().map(|_| 0),
                    _ => Consumer::new(ring.clone()).sleep().map(|_| 0),
                };
                match result {
                    Ok(bytes) => {
                        assert!(bytes <= len.min(64), "{bytes}");
                        moved += bytes;
                    }
                    Err(Corrupt {
                        produced,
                        consumed,
                        size,
                    }) => {
                        assert!(produced.wrapping_sub(consumed) > size);
                        refused += 1;
                    }
                }
                if round > few && moved > 0 && refused > 0 {
                    break;
                }
            }
            stop.store(1, Relaxed);
        });
    }

    /// Two threads, each of which sleeps whenever it may: a missed bell would be a hang, which the limits show.
    #[test]
    fn no_bell_is_missed() {
        const TOTAL: usize = 2_000_000;
        let ring = Plain::new(64, 0);
        let (to_consumer, consumer_bell) = mpsc::channel();
        let (to_producer, producer_bell) = mpsc::channel();
        let deadline = minivm_tests::patience::PATIENCE;
        let their = ring.clone();
        let thread = std::thread::spawn(move || {
            let mut producer = Producer::new(their);
            let mut sent = 0;
            while sent < TOTAL {
                let bytes: Vec<u8> = (sent..(sent + 1 + sent % 90).min(TOTAL))
                    .map(|i| u8::try_from(i % 251).unwrap())
                    .collect();
                let moved = producer.push(&bytes).unwrap();
                sent += moved.bytes;
                if moved.bell {
                    to_consumer.send(()).unwrap();
                }
                if moved.bytes == 0 && producer.sleep().unwrap() {
                    producer_bell
                        .recv_timeout(deadline)
                        .expect("the consumer rings");
                }
            }
        });
        let mut consumer = Consumer::new(ring);
        let (mut seen, mut into) = (0, [0; 50]);
        while seen < TOTAL {
            let moved = consumer.pop(&mut into).unwrap();
            for (i, byte) in into[..moved.bytes].iter().enumerate() {
                assert_eq!(usize::from(*byte), (seen + i) % 251);
            }
            seen += moved.bytes;
            if moved.bell {
                let _ = to_producer.send(());
            }
            if moved.bytes == 0 && consumer.sleep().unwrap() {
                consumer_bell
                    .recv_timeout(deadline)
                    .expect("the producer rings");
            }
        }
        thread.join().unwrap();
    }
}
