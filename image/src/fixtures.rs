//! Images that tests make.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::digest::Digest;
use super::image::{Image, Layer, Root};
use super::options::Options;
use super::platform::Platform;

/// Files by their names: a layout, or the members of an archive.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// An image's content.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) layers: Vec<Vec<u8>>,
    pub(super) config: Vec<u8>,
    pub(super) manifest: Vec<u8>,
}

/// An image of this machine's platform, with a layer for each of `contents`.
pub(super) fn image(contents: &[&str]) -> Made {
    image_for(&Platform::here().architecture, contents)
}

pub(super) fn image_for(architecture: &str, contents: &[&str]) -> Made {
    let layers = contents
        .iter()
        .map(|content| tar(&[("etc/motd", EntryType::Regular, "", content.as_bytes())]));
    image_of(architecture, layers.collect())
}

pub(super) fn image_of(architecture: &str, layers: Vec<Vec<u8>>) -> Made {
    let diff_ids: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
    let config = json!({
        "os": "linux",
        "architecture": architecture,
        "config": {
            "Entrypoint": null, "Cmd": ["/bin/sh"], "Env": ["A=1"], "WorkingDir": "/srv", "User": "1000:1000",
            "StopSignal": "SIGINT", "Labels": {"a": "b"}
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = to_vec(&config);
    let descriptors: Vec<Value> = layers
        .iter()
        .map(|layer| descriptor(layer, "application/vnd.oci.image.layer.v1.tar"))
        .collect();
    let manifest = to_vec(&json!({
        "schemaVersion": 2,
        "config": descriptor(&config, "application/vnd.oci.image.config.v1+json"),
        "layers": descriptors,
    }));
    Made {
        layers,
        config,
        manifest,
    }
}

pub(super) fn to_vec(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

pub(super) fn descriptor(content: &[u8], media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(content).to_string(), "size": content.len()})
}

/// A manifest's entry of an index, for a platform or with a name.
pub(super) fn entry(manifest: &[u8], platform: Option<&str>, name: Option<&str>) -> Value {
    let mut entry = descriptor(manifest, "application/vnd.oci.image.manifest.v1+json");
    if let Some((os, architecture)) = platform.and_then(|p| p.split_once('/')) {
        let (architecture, variant) = architecture.split_once('/').unwrap_or((architecture, ""));
        entry["platform"] = json!({"os": os, "architecture": architecture, "variant": variant});
    }
    if let Some(name) = name {
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    }
    entry
}

pub(super) fn index(entries: &[Value]) -> Vec<u8> {
    to_vec(&json!({"schemaVersion": 2, "manifests": entries}))
}

impl Made {
    pub(super) fn identity(&self) -> String {
        Digest::of(&self.config).to_string()
    }

    /// All content, by digest.
    pub(super) fn blobs(&self) -> impl Iterator<Item = (Digest, &Vec<u8>)> {
        let documents = [&self.config, &self.manifest];
        self.layers
            .iter()
            .chain(documents)
            .map(|blob| (Digest::of(blob), blob))
    }

    /// A layout with these and other images' blobs, without `index.json`.
    pub(super) fn files(&self) -> Files {
        let blob = |(digest, blob): (Digest, &Vec<u8>)| {
            (format!("blobs/sha256/{}", digest.hex()), blob.clone())
        };
        let mut files: Files = self.blobs().map(blob).collect();
        files.insert(
            "oci-layout".into(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        );
        files
    }

    /// A layout of the one image.
    pub(super) fn layout(&self, name: &str) -> Files {
        let mut files = self.files();
        let index = index(&[entry(&self.manifest, None, Some(name))]);
        files.insert("index.json".into(), index);
        files
    }

    /// What `docker save` wrote before version 25.
    pub(super) fn saved(&self, tags: &[&str]) -> Files {
        let mut files = Files::new();
        let config = format!("{}.json", Digest::of(&self.config).hex());
        let mut names = Vec::new();
        for (at, layer) in self.layers.iter().enumerate() {
            names.push(format!("{at:064}/layer.tar"));
            files.insert(names[at].clone(), layer.clone());
        }
        let list = json!([{"Config": config, "RepoTags": tags, "Layers": names}]);
        files.insert("manifest.json".into(), to_vec(&list));
        files.insert(config, self.config.clone());
        files
    }
}

pub(super) fn write_folder(files: &Files, folder: &Path) {
    for (name, content) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// An archive of the files, in reverse order of their names: the member that is read first comes last.
pub(super) fn archive(files: &Files) -> Vec<u8> {
    let members: Vec<_> = files
        .iter()
        .rev()
        .map(|(name, content)| (name.as_str(), EntryType::Regular, "", content.as_slice()))
        .collect();
    tar(&members)
}

/// An archive with names just as they are: name, type, target, content.
pub(super) fn tar(members: &[(&str, EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, target, content) in members {
        let mut header = Header::new_ustar();
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Short pauses, for servers that misbehave on purpose. One that sends nothing is waited for: on a busy machine any may be slow.
pub(super) fn options() -> Options {
    use minivm_tests::patience::PATIENCE;
    use std::time::Duration;
    Options {
        connect_timeout: PATIENCE,
        stall_timeout: PATIENCE,
        retries: 2,
        backoff: Duration::from_millis(10),
        longest_pause: Duration::from_secs(2),
        ..Options::default()
    }
}

/// Reads the layers' content from their blobs.
pub(super) fn layers_of(image: &Image) -> Vec<Vec<u8>> {
    let Root::Layers(layers) = &image.root else {
        panic!("no layers");
    };
    let read = |layer: &Layer| super::files::read(&layer.blob, u64::MAX - 1).unwrap();
    layers.iter().map(read).collect()
}
