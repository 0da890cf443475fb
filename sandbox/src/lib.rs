//! Runs code in small virtual machines.

pub mod cache;
pub mod lab;
