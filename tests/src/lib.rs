//! What the tests of several crates share: what `cargo xtask test` gives them ([`given`]), programs that are given a time to end
//! ([`program`], [`patience`]) or a terminal ([`terminal`]), machine code ([`code`]), kernels' files to run or to refuse
//! ([`kernel_file`]), small container images ([`busybox`]), outputs that are looked at afterwards ([`output`]), what else runs
//! ([`processes`]), pages in a browser ([`browser`]), and how much stress tests do ([`stress`]).

pub mod browser;
pub mod busybox;
pub mod code;
pub mod cpio;
pub mod given;
pub mod kernel_file;
pub mod output;
pub mod patience;
pub mod processes;
pub mod program;
pub mod stress;
pub mod terminal;
