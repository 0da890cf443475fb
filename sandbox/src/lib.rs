//! Runs code in small virtual machines.

pub mod lab;
