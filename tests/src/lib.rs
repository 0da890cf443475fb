//! What the tests of several crates share: what `cargo xtask test` gives them ([`given`]), programs that are given a time to end
//! ([`program`], [`patience`]) or a terminal ([`terminal`]), machine code ([`code`]), kernels' files to run or to refuse
//! ([`kernel_file`]), good inputs changed into others ([`mutation`]), a check of trace files ([`chrome_trace`]), small container images
//! ([`busybox`]), inputs that are there from the start ([`input`]), outputs that are looked at afterwards ([`output`]), pages in a browser ([`browser`]), what else runs ([`processes`]),
//! copies of a test's process ([`fork`]), what a process still has afterwards ([`growth`]), folders of
//! snapshots ([`snapshot`]), and how much stress tests do ([`stress`]).

pub mod browser;
pub mod busybox;
pub mod chrome_trace;
pub mod code;
pub mod cpio;
pub mod fork;
pub mod given;
pub mod growth;
pub mod input;
pub mod kernel_file;
pub mod mutation;
pub mod output;
pub mod patience;
pub mod processes;
pub mod program;
pub mod snapshot;
pub mod stress;
pub mod terminal;
