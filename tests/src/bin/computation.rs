//! A guest's init that computes with threads, timers and vector registers, and reports on the console byte by byte. It is
//! the same each time to the last byte, so whatever a snapshot loses of a guest's state shows in what it writes.
//!
//! It writes `line 0 of 20 abc…` and so on, the result of each thread, `vectors are kept`, `clocks are right`, and switches off.

#![allow(unsafe_code, reason = "the registers of AVX are what this is about")]

use std::arch::asm;
use std::arch::x86_64::{
    _mm256_add_epi64, _mm256_castpd_si256, _mm256_cmpeq_epi64, _mm256_extract_epi64,
    _mm256_movemask_epi8, _mm256_set_epi64x, _mm256_set_pd, _mm256_set1_pd,
    _mm512_cmpneq_epi64_mask, _mm512_reduce_add_epi64, _mm512_set_epi64, _mm512_set1_epi64,
};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::system::{RebootCommand, reboot};

const LINES: usize = 20;
const THREADS: i64 = 4;
/// How often each thread computes, and then sleeps.
const BURSTS: u32 = 20;
/// How long a sleep may take: the lab is slow, and a snapshot takes its time.
const SLEEP_MAX: Duration = Duration::from_secs(20);
const SLEEP: Duration = Duration::from_millis(3);

/// Set when a clock has gone back, or a timer was early or very late.
static CLOCK_IS_WRONG: AtomicBool = AtomicBool::new(false);

/// Set when a vector register has changed by itself.
static VECTORS_ARE_LOST: AtomicBool = AtomicBool::new(false);

pub(super) fn main() {
    let mut console = OpenOptions::new()
        .write(true)
        .open("/dev/console")
        .expect("there is a console");
    let vectors = Vectors::of_this_processor();
    write(&mut console, &format!("starts with {vectors:?}\n"));
    let threads: Vec<_> = (0..THREADS)
        .map(|seed| thread::spawn(move || bursts(seed, vectors)))
        .collect();
    for line in 0..LINES {
        let letters: String = ('a'..='z').cycle().skip(line).take(50).collect();
        write(&mut console, &format!("line {line} of {LINES} {letters}\n"));
        thread::sleep(SLEEP);
    }
    for thread in threads {
        let sum = thread.join().expect("it doesn't panic");
        write(&mut console, &format!("result {sum:016x}\n"));
    }
    let vectors = if VECTORS_ARE_LOST.load(Ordering::SeqCst) {
        "lost"
    } else {
        "kept"
    };
    write(&mut console, &format!("vectors are {vectors}\n"));
    let clocks = if CLOCK_IS_WRONG.load(Ordering::SeqCst) {
        "wrong"
    } else {
        "right"
    };
    write(&mut console, &format!("clocks are {clocks}\n"));
    let _ = reboot(RebootCommand::PowerOff);
}

/// A byte at a time, so that a line is half written most of the time.
fn write(console: &mut File, text: &str) {
    let vectors = Vectors::of_this_processor();
    for byte in text.bytes() {
        let kept = match vectors {
            // SAFETY: the processor has AVX-512's foundation.
            Vectors::Avx512 => unsafe { write_with_avx512(console, byte) },
            // SAFETY: the processor has AVX2.
            Vectors::Avx2 => unsafe { write_with_avx2(console, byte) },
            Vectors::Sse => {
                console.write_all(&[byte]).expect("the console takes it");
                true
            }
        };
        if !kept {
            VECTORS_ARE_LOST.store(true, Ordering::SeqCst);
        }
    }
}

/// Writes a byte while a register of AVX-512's own has numbers: a machine that is saved meanwhile has them in its processor. Returns
/// whether they are still there.
#[target_feature(enable = "avx512f")]
fn write_with_avx512(console: &File, byte: u8) -> bool {
    let numbers = _mm512_set_epi64(1, 2, 3, 5, 8, 13, 21, 34 + i64::from(byte));
    let mut after = numbers;
    let written: isize;
    // SAFETY: write(2) reads the byte, and changes no registers but those that are named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") 1isize => written,
            in("rdi") console.as_raw_fd(),
            in("rsi") &raw const byte,
            in("rdx") 1,
            out("rcx") _,
            out("r11") _,
            inout("zmm20") after,
            options(nostack),
        );
    }
    assert_eq!(written, 1, "the console takes it");
    _mm512_cmpneq_epi64_mask(numbers, after) == 0
}

/// The same with AVX2.
#[target_feature(enable = "avx2")]
fn write_with_avx2(console: &File, byte: u8) -> bool {
    let numbers = _mm256_set_epi64x(1, 2, 3, 5 + i64::from(byte));
    let mut after = numbers;
    let written: isize;
    // SAFETY: write(2) reads the byte, and changes no registers but those that are named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") 1isize => written,
            in("rdi") console.as_raw_fd(),
            in("rsi") &raw const byte,
            in("rdx") 1,
            out("rcx") _,
            out("r11") _,
            inout("ymm12") after,
            options(nostack),
        );
    }
    assert_eq!(written, 1, "the console takes it");
    _mm256_movemask_epi8(_mm256_cmpeq_epi64(numbers, after)) == -1
}

/// The widest vectors that the processor has.
#[derive(Clone, Copy, Debug)]
enum Vectors {
    Avx512,
    Avx2,
    Sse,
}

impl Vectors {
    fn of_this_processor() -> Self {
        if is_x86_feature_detected!("avx512f") {
            Vectors::Avx512
        } else if is_x86_feature_detected!("avx2") {
            Vectors::Avx2
        } else {
            Vectors::Sse
        }
    }
}

fn bursts(seed: i64, vectors: Vectors) -> i64 {
    let mut sum = seed;
    let mut wall = SystemTime::now();
    for _ in 0..BURSTS {
        sum = match vectors {
            // SAFETY: the processor has AVX-512's foundation.
            Vectors::Avx512 => unsafe { wide_burst(sum) },
            // SAFETY: the processor has AVX2.
            Vectors::Avx2 => unsafe { vector_burst(sum) },
            Vectors::Sse => burst(sum),
        };
        let start = Instant::now();
        thread::sleep(SLEEP);
        let slept = start.elapsed();
        let now = SystemTime::now();
        if !(SLEEP..SLEEP_MAX).contains(&slept) || now < wall {
            CLOCK_IS_WRONG.store(true, Ordering::SeqCst);
        }
        wall = now;
    }
    sum
}

/// Numbers that stay in the registers of AVX from the first round to the last, whatever the compiler and its options.
#[target_feature(enable = "avx2")]
fn vector_burst(seed: i64) -> i64 {
    let mut numbers = _mm256_set_epi64x(seed | 1, 3, 5, 7);
    let mut floats = _mm256_set_pd(1.0, 2.0, 3.0, 4.0);
    let (factor, term) = (_mm256_set1_pd(0.999), _mm256_set1_pd(0.125));
    // SAFETY: it changes nothing but the registers that it names.
    unsafe {
        asm!(
            "2:",
            "vpsllq {scratch}, {numbers}, 13",
            "vpxor {numbers}, {numbers}, {scratch}",
            "vpsrlq {scratch}, {numbers}, 7",
            "vpxor {numbers}, {numbers}, {scratch}",
            "vpsllq {scratch}, {numbers}, 17",
            "vpxor {numbers}, {numbers}, {scratch}",
            "vmulpd {floats}, {floats}, {factor}",
            "vaddpd {floats}, {floats}, {term}",
            "dec {rounds}",
            "jnz 2b",
            numbers = inout(ymm_reg) numbers,
            floats = inout(ymm_reg) floats,
            factor = in(ymm_reg) factor,
            term = in(ymm_reg) term,
            scratch = out(ymm_reg) _,
            rounds = inout(reg) 4000u64 => _,
            options(nomem, nostack),
        );
    }
    let all = _mm256_add_epi64(numbers, _mm256_castpd_si256(floats));
    let halves = _mm256_extract_epi64::<0>(all) ^ _mm256_extract_epi64::<1>(all);
    halves ^ _mm256_extract_epi64::<2>(all) ^ _mm256_extract_epi64::<3>(all)
}

/// The same with AVX-512: with one of the registers that AVX2 lacks, and a mask that leaves three of eight numbers out.
#[target_feature(enable = "avx512f")]
fn wide_burst(seed: i64) -> i64 {
    let mut numbers = _mm512_set_epi64(seed | 1, 3, 5, 7, 9, 11, 13, 15);
    let term = _mm512_set1_epi64(0x1234_5678_9abc_def1);
    // SAFETY: it changes nothing but the registers that it names.
    unsafe {
        asm!(
            "2:",
            "vpsllq {scratch}, zmm20, 13",
            "vpxorq zmm20, zmm20, {scratch}",
            "vpsrlq {scratch}, zmm20, 7",
            "vpxorq zmm20, zmm20, {scratch}",
            "vpsllq {scratch}, zmm20, 17",
            "vpxorq zmm20, zmm20, {scratch}",
            "vpaddq zmm20 {{{mask}}}, zmm20, {term}",
            "dec {rounds}",
            "jnz 2b",
            inout("zmm20") numbers,
            term = in(zmm_reg) term,
            mask = in(kreg) 0b1011_0110u16,
            scratch = out(zmm_reg) _,
            rounds = inout(reg) 4000u64 => _,
            options(nomem, nostack),
        );
    }
    _mm512_reduce_add_epi64(numbers)
}

/// The same with what every x86-64 has.
fn burst(seed: i64) -> i64 {
    let mut number = seed | 1;
    let mut float = 4.0f64;
    for _ in 0..4000 {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        float = float * 0.999 + 0.125;
    }
    number ^ i64::from_ne_bytes(float.to_ne_bytes())
}
