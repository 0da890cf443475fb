//! Builds `minivm-init`, which this crate includes as bytes, for guests of each architecture.
//!
//! The program has to be one static file, and a small one: it is linked against musl where Rust's target for it is installed
//! (`rustup target add x86_64-unknown-linux-musl`). Where that of this crate's own architecture isn't, it is linked against the host's own C
//! library, which makes it twice the size. Where another architecture's isn't, this crate has no init for that.

use std::env;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// The architectures of guests: the name in images' platforms, Rust's name, and the target whose C library and standard library are linked
/// into one static file.
const GUESTS: [(&str, &str, &str); 2] = [
    ("amd64", "x86_64", "x86_64-unknown-linux-musl"),
    ("arm64", "aarch64", "aarch64-unknown-linux-musl"),
];

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
    let out = PathBuf::from(variable("OUT_DIR"));
    let folder = target_folder(&out).join("minivm-init");
    let targets = targets();
    build(&targets, &folder);
    let mut inits = String::from("&[\n");
    for (guest, target) in &targets {
        let built = folder.join(target).join("init/minivm-init");
        let init = std::fs::read(&built)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", built.display()));
        let copy = out.join(format!("minivm-init-{guest}"));
        std::fs::write(&copy, &init).expect("Cargo's folder can be written to");
        let digest: String = Sha256::digest(&init)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        writeln!(
            inits,
            "Init {{ architecture: {guest:?}, program: include_bytes!({copy:?}), digest: {digest:?} }},"
        )
        .expect("a string takes all");
    }
    inits.push(']');
    std::fs::write(out.join("inits.rs"), inits).expect("Cargo's folder can be written to");
}

/// Returns a variable that Cargo sets.
fn variable(name: &str) -> String {
    env::var(name).expect("Cargo sets it")
}

/// Returns the guests that an init can be built for, with the target for it.
fn targets() -> Vec<(&'static str, String)> {
    let own = variable("CARGO_CFG_TARGET_ARCH");
    let mut targets = Vec::new();
    for (guest, architecture, musl) in GUESTS {
        if is_installed(musl) {
            targets.push((guest, musl.to_owned()));
        } else if architecture == own {
            targets.push((guest, variable("TARGET")));
        }
    }
    targets
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

fn build(targets: &[(&str, String)], folder: &Path) {
    let mut cargo = Command::new(env::var_os("CARGO").expect("Cargo sets it"));
    cargo
        .args(["build", "--package", "minivm-guest", "--bin", "minivm-init"])
        .args(["--profile", "init", "--locked"])
        .arg("--target-dir")
        .arg(folder);
    for (_, target) in targets {
        cargo.args(["--target", target]);
        // A host's C compiler links for the host's architecture; the linker that comes with Rust does for all, and musl needs no more.
        let linker = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase()).replace('-', "_");
        let architecture = |target: &str| target.split('-').next().map(str::to_owned);
        if architecture(target) != architecture(&variable("HOST")) && env::var_os(&linker).is_none()
        {
            cargo.env(linker, "rust-lld");
        }
    }
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
