//! Real images, made by the tools that everybody makes images with (umoci, skopeo, a registry, Docker), and what `minivm`
//! makes of them.
//!
//! They run on the host as root: only root unpacks devices and owners, and `umoci`'s unpacking is what a guest's files are
//! compared with. The few guests run where `--accel auto` puts them. `cargo xtask test` installs the tools and names the
//! files in the environment; where one is missing, tests fail.

// Tests run: with the tools

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod bad;
mod cached;
mod erofs;
mod fetcher;
mod guest;
mod initramfs;
mod kills;
mod made;
mod registry;
mod saved;
mod sources;
mod tape;
mod tools;
