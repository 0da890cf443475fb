//! What the tests of several crates share: programs that are given a time to end ([`program`]), and small kernels' files
//! to run or to refuse ([`image`]), and outputs that are looked at afterwards ([`output`]).

pub mod image;
pub mod output;
pub mod program;
