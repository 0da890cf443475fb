//! Runs code in small virtual machines.

pub mod assets;
pub mod backend;
pub mod cache;
pub mod images;
pub mod jail;
pub mod kernel;
pub mod lab;
pub mod machine;
pub mod output;
pub mod output_path;
pub mod printable;
pub mod streams;
pub mod templates;
