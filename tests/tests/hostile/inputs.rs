//! The bodies of the fuzz targets, run in a loop: with inputs that are good ones changed in a few places, or noise.

use minivm_tests::mutation::try_out;
use minivm_tests::stress;

use super::seeds;

#[path = "../../../fuzz/bodies/documents.rs"]
mod documents;
#[path = "../../../fuzz/bodies/erofs.rs"]
mod erofs;
#[path = "../../../fuzz/bodies/folders.rs"]
mod folders;
#[path = "../../../fuzz/bodies/frames.rs"]
mod frames;
#[path = "../../../fuzz/bodies/kernel.rs"]
mod kernel;
#[path = "../../../fuzz/bodies/layer.rs"]
mod layer;
#[path = "../../../fuzz/bodies/registry.rs"]
mod registry;
#[path = "../../../fuzz/bodies/ring.rs"]
mod ring;
#[path = "../../../fuzz/bodies/session.rs"]
mod session;
#[path = "../../../fuzz/bodies/unpack.rs"]
mod unpack;

const ARCHIVE: &str = include_str!("../../../fuzz/dictionaries/archive.dict");
const DOCUMENTS: &str = include_str!("../../../fuzz/dictionaries/documents.dict");
const FOLDERS: &str = include_str!("../../../fuzz/dictionaries/folders.dict");
const KERNEL: &str = include_str!("../../../fuzz/dictionaries/kernel.dict");
const REGISTRY: &str = include_str!("../../../fuzz/dictionaries/registry.dict");
const SESSION: &str = include_str!("../../../fuzz/dictionaries/session.dict");

/// Runs a target `few` times, or `many` in a soak.
fn check(name: &str, target: fn(&[u8]), dictionary: &str, few: usize, many: usize) {
    try_out(
        target,
        &seeds::of(name),
        dictionary,
        stress::count(few, many),
    );
}

#[test]
fn frames_are_decoded_or_refused() {
    check("frames", frames::run, SESSION, 1000, 10_000_000);
}

#[test]
fn archives_are_unpacked_or_refused() {
    check("unpack", unpack::run, ARCHIVE, 1000, 10_000_000);
}

#[test]
fn rings_move_bytes_or_are_corrupt() {
    check("ring", ring::run, "", 5000, 10_000_000);
}

#[test]
fn layers_become_a_root_or_are_refused() {
    check("layer", layer::run, ARCHIVE, 300, 100_000);
}

#[test]
fn erofs_images_are_read_or_refused() {
    check("erofs", erofs::run, "", 2000, 1_000_000);
}

#[test]
fn sessions_end_whatever_the_guest_says() {
    check("session", session::run, SESSION, 900, 300_000);
}

#[test]
fn folders_keep_a_guest_inside() {
    check("folders", folders::run, FOLDERS, 1000, 1_000_000);
}

#[test]
fn kernels_are_loaded_or_refused() {
    check("kernel", kernel::run, KERNEL, 300, 50_000);
}

#[test]
fn documents_make_an_image_or_are_refused() {
    check("documents", documents::run, DOCUMENTS, 600, 300_000);
}

#[test]
fn registries_are_pulled_from_or_refused() {
    check("registry", registry::run, REGISTRY, 150, 50_000);
}
