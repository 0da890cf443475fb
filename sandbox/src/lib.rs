//! Runs code in small virtual machines.

pub mod cache;
pub mod images;
pub mod kernel;
pub mod lab;
pub mod machine;
pub mod printable;
pub mod streams;
