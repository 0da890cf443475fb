//! What the tests of several crates share: what `cargo xtask test` gives them ([`given`]), programs that are given a time to end
//! ([`program`], [`patience`]) or a terminal ([`terminal`]), small kernels' files to run or to refuse ([`image`]), small container images
//! ([`busybox`]), and outputs that are looked at afterwards ([`output`]).

pub mod busybox;
pub mod cpio;
pub mod given;
pub mod image;
pub mod output;
pub mod patience;
pub mod program;
pub mod terminal;
