//! Builds `minivm-init`, which this crate includes as bytes.
//!
//! The program has to be one static file, and a small one: it is linked against musl where Rust's target for it is installed
//! (`rustup target add x86_64-unknown-linux-musl`), else against the host's own C library, which makes it twice the size.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// The target whose C library and standard library are linked into one static file.
const MUSL: &str = "x86_64-unknown-linux-musl";

fn main() {
    for source in [
        "../guest/src",
        "../guest/Cargo.toml",
        // These have the profile `init`, and the versions of init's dependencies.
        "../Cargo.toml",
        "../Cargo.lock",
        "../.cargo/config.toml",
    ] {
        println!("cargo::rerun-if-changed={source}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets it"));
    let target = if is_installed(MUSL) {
        MUSL.to_owned()
    } else {
        env::var("TARGET").expect("Cargo sets it")
    };
    let folder = target_folder(&out).join("minivm-init");
    build(&target, &folder);
    let built = folder.join(&target).join("init/minivm-init");
    let init = std::fs::read(&built)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", built.display()));
    std::fs::write(out.join("minivm-init"), &init).expect("Cargo's folder can be written to");
    let digest: String = Sha256::digest(&init)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("cargo::rustc-env=MINIVM_INIT_DIGEST={digest}");
}

/// Returns Cargo's target folder, so that init is built once for all profiles.
fn target_folder(out: &Path) -> &Path {
    out.ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .unwrap_or(out)
}

/// Returns whether Rust's standard library is installed for the target. Cargo runs this again when that changes.
fn is_installed(target: &str) -> bool {
    let rustc = env::var_os("RUSTC").expect("Cargo sets it");
    let printed = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", target])
        .output();
    let Ok(printed) = printed else {
        return false;
    };
    let libraries = PathBuf::from(String::from_utf8_lossy(&printed.stdout).trim());
    let installed = printed.status.success() && libraries.is_dir();
    // Cargo takes a missing folder as changed each time. `<sysroot>/lib/rustlib` exists, and in it rustup's list.
    let targets = libraries.ancestors().nth(2).unwrap_or(&libraries);
    let list = targets.join("components");
    let watched = match installed {
        true => &libraries,
        false if list.exists() => &list,
        false => targets,
    };
    if watched.exists() {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    installed
}

fn build(target: &str, folder: &Path) {
    let mut cargo = Command::new(env::var_os("CARGO").expect("Cargo sets it"));
    cargo
        .args(["build", "--package", "minivm-guest", "--bin", "minivm-init"])
        .args(["--profile", "init", "--locked"])
        .args(["--target", target, "--target-dir"])
        .arg(folder);
    // Flags and wrappers for minivm's own build (clippy's, for example) are not for init's.
    for name in [
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTFLAGS",
    ] {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("Cargo runs");
    assert!(status.success(), "minivm-init could not be built");
}
