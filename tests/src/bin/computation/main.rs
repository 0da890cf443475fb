//! The init of a guest that computes, where the architecture has one.

#[cfg(target_arch = "x86_64")]
#[path = "../computation.rs"]
mod x86_64;

fn main() {
    #[cfg(target_arch = "x86_64")]
    x86_64::main();
}
