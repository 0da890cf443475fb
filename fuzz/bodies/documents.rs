//! Any text as the documents of an image: an index, a manifest, a configuration and `docker save`'s list, with a NUL byte behind each.
//!
//! A document names the next one by its digest, so the text has marks where the digests belong: `$CONFIG`, `$MANIFEST` and `$LAYER`,
//! and `$CONFIG_SIZE` and so on for the sizes.

use std::fs;
use std::path::Path;

use minivm_image::{Digest, Options, Root, Source, Store, Unwatched};

/// What is in the layer; no document says so.
const LAYER: &[u8] = &[0; 1024];

pub(crate) fn run(data: &[u8]) {
    let mut texts = data.split(|byte| *byte == 0);
    let mut text = || texts.next().unwrap_or_default().to_vec();
    let [index, manifest, config, saved] = [text(), text(), text(), text()];
    let config = marked(config, "$LAYER", LAYER);
    let manifest = marked(marked(manifest, "$LAYER", LAYER), "$CONFIG", &config);
    let index = marked(index, "$MANIFEST", &manifest);
    let saved = marked(saved, "$CONFIG", &config);

    let folder = std::env::temp_dir().join(format!("minivm-fuzz-documents-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    let layout = folder.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a temporary folder can be made");
    put(&layout, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    put(&layout, "index.json", &index);
    for blob in [LAYER, &config, &manifest] {
        let name = format!("blobs/sha256/{}", Digest::of(blob).hex());
        put(&layout, &name, blob);
    }
    open(
        Source::Oci {
            folder: layout,
            tag: None,
        },
        &folder,
    );

    let mut archive = tar::Builder::new(Vec::new());
    let members = [
        ("manifest.json", &saved[..]),
        ("config.json", &config),
        ("layer.tar", LAYER),
    ];
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        let appended = archive.append_data(&mut header, name, content);
        appended.expect("memory can be written to");
    }
    put(
        &folder,
        "saved.tar",
        &archive.into_inner().expect("memory can be written to"),
    );
    let file = folder.join("saved.tar");
    open(
        Source::DockerArchive {
            file,
            reference: None,
        },
        &folder,
    );
    let _ = fs::remove_dir_all(&folder);
}

/// Opens an image. What is refused is refused in one line; what is taken has as many layers as there can be.
fn open(source: Source, folder: &Path) {
    let options = Options {
        platform: "linux/amd64".parse().expect("it is a platform"),
        largest: 1 << 20,
        ..Options::default()
    };
    let store = Store::new(folder.join("store"));
    match minivm_image::open(&source, &store, &options, &Unwatched) {
        Ok(image) => assert!(matches!(image.root, Root::Layers(layers) if layers.len() <= 1000)),
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains(char::is_control), "{line:?}");
        }
    }
}

/// Puts the digest and the size of a piece of content in the place of its marks.
fn marked(text: Vec<u8>, mark: &str, content: &[u8]) -> Vec<u8> {
    let size = format!("{mark}_SIZE");
    let text = replaced(text, size.as_bytes(), content.len().to_string().as_bytes());
    replaced(
        text,
        mark.as_bytes(),
        Digest::of(content).to_string().as_bytes(),
    )
}

fn replaced(text: Vec<u8>, mark: &[u8], by: &[u8]) -> Vec<u8> {
    let mut rest = &text[..];
    let mut made = Vec::new();
    while let Some(at) = rest.windows(mark.len()).position(|part| part == mark) {
        made.extend_from_slice(&rest[..at]);
        made.extend_from_slice(by);
        rest = &rest[at + mark.len()..];
    }
    made.extend_from_slice(rest);
    made
}

fn put(folder: &Path, name: &str, content: &[u8]) {
    fs::write(folder.join(name), content).expect("a temporary file can be written");
}
