//! The images, made once.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use minivm_tests::given;

use crate::tape::{Attributes, Tape, mode, name};
use crate::tools::tool;

/// An OCI layout with the images, and other forms of them.
pub(crate) struct Images {
    pub(crate) folder: PathBuf,
}

/// What the difficult image runs: it prints what it finds and waits for a signal.
const ENTRYPOINT: &str = r#"import json, os, signal, sys, time
got = []
for number in (1, 2, 3, 10, 12, 15):
    signal.signal(number, lambda number, frame: got.append(number))
print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "uid": os.getuid(), "gid": os.getgid(),
    "groups": sorted(os.getgroups()), "env": dict(os.environ)}), flush=True)
while not got:
    time.sleep(0.05)
print("got", *got, flush=True)
sys.exit(7)
"#;

pub(crate) fn images() -> &'static Images {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    IMAGES.get_or_init(make)
}

impl Images {
    pub(crate) fn layout(&self) -> PathBuf {
        self.folder.join("layout")
    }

    /// An image of the layout, as both `skopeo` and `minivm` call it.
    pub(crate) fn oci(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.layout().display())
    }
}

fn make() -> Images {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir_all(&folder).unwrap();
    let images = Images { folder };
    let layout = images.layout();
    let layout = layout.to_str().unwrap();
    tool(&["umoci", "init", "--layout", layout]);
    python(&images, layout);
    let difficult = format!("{layout}:difficult");
    tool(&[
        "umoci",
        "tag",
        "--image",
        &format!("{layout}:python"),
        "difficult",
    ]);
    for (number, layer) in [lower(), middle(), upper()].into_iter().enumerate() {
        let file = images.folder.join(format!("layer-{number}.tar"));
        fs::write(&file, layer).unwrap();
        add_layer(&difficult, &file);
    }
    configure(
        &difficult,
        &[
            "--config.entrypoint=/usr/local/bin/python3",
            "--config.entrypoint=-S",
            "--config.entrypoint=/srv/entry.py",
            "--config.cmd=one",
            "--config.cmd=two words",
            "--config.env=GREETING=good morning",
            "--config.env=PATH=/usr/local/bin:/usr/bin:/bin",
            "--config.workingdir=/srv/work",
            "--config.user=app",
            "--config.stopsignal=SIGUSR1",
        ],
    );
    // Docker can load a layer like the last one, and not save it again; and folders without an entry are for root alone.
    tool(&["umoci", "tag", "--image", &difficult, "loadable"]);
    let file = images.folder.join("last.tar");
    let mut last = Tape::new();
    last.file("implied/folders/file", mode(0o644), b"8");
    last.file("abs/other-tool", mode(0o755), b"#!/bin/sh\n");
    fs::write(&file, last.bytes()).unwrap();
    add_layer(&difficult, &file);
    // Two layers of what doesn't compress.
    let random = format!("{layout}:random");
    tool(&["umoci", "new", "--image", &random]);
    for number in 0..2 {
        let file = images.folder.join(format!("random-{number}.tar"));
        let mut layer = Tape::new();
        layer.file(
            format!("file-{number}"),
            mode(0o644),
            &noise(4 << 20, number),
        );
        fs::write(&file, layer.bytes()).unwrap();
        add_layer(&random, &file);
    }
    configure(&random, &["--config.entrypoint=/file-0"]);
    images
}

/// The demo's root file system in one layer.
fn python(images: &Images, layout: &str) {
    let image = format!("{layout}:python");
    tool(&["umoci", "new", "--image", &image]);
    let bundle = images.folder.join("bundle");
    let bundle = bundle.to_str().unwrap();
    tool(&["umoci", "unpack", "--image", &image, bundle]);
    let demo = given::python_root();
    let from = format!("{}/.", demo.display());
    tool(&["cp", "-a", &from, &format!("{bundle}/rootfs/")]);
    tool(&["umoci", "repack", "--image", &image, bundle]);
    fs::remove_dir_all(bundle).unwrap();
    configure(&image, &["--config.entrypoint=/usr/local/bin/python3"]);
}

pub(crate) fn configure(image: &str, flags: &[&str]) {
    tool(&[&["umoci", "config", "--image", image], flags].concat());
}

pub(crate) fn add_layer(image: &str, file: &Path) {
    tool(&[
        "umoci",
        "raw",
        "add-layer",
        "--image",
        image,
        file.to_str().unwrap(),
    ]);
}

/// Bytes that look random, and are the same every time.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

fn app(mode: u32) -> Attributes {
    Attributes {
        mode,
        uid: 1234,
        gid: 2345,
    }
}

/// `cap_net_raw+ep`, as `struct vfs_cap_data` has it (`include/uapi/linux/capability.h`).
pub(crate) const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// What is to be hidden and linked later, and everything that's hard about a single layer.
fn lower() -> Vec<u8> {
    let mut layer = Tape::new();
    layer.folder("etc", mode(0o755));
    let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1234:2345::/home/app:/bin/sh\n";
    layer.file("etc/passwd", mode(0o644), passwd.as_bytes());
    let group = "root:x:0:\napp:x:2345:\naudio:x:29:app\nvideo:x:44:other,app\nother:x:50:\n";
    layer.file("etc/group", mode(0o644), group.as_bytes());
    layer.file("etc/hosts", mode(0o644), b"127.0.0.1 images-own\n");
    layer.folder("srv", mode(0o755));
    layer.folder("srv/work", app(0o2775));
    layer.file("srv/entry.py", mode(0o644), ENTRYPOINT.as_bytes());
    layer.folder("run", mode(0o755));
    layer.file("run/stays", mode(0o600), b"here");
    // As distributions merge /sbin into /usr/sbin.
    layer.folder("usr", mode(0o755));
    layer.folder("usr/sbin", mode(0o755));
    layer.symlink("sbin", "usr/sbin");
    layer.symlink("abs", "/usr/sbin");

    layer.folder("hard", mode(0o1777));
    layer.file("hard/setuid", app(0o4755), b"#!/bin/sh\n");
    layer.file("hard/setgid", app(0o2711), b"#!/bin/sh\n");
    layer.file("hard/unreadable", mode(0), b"secret");
    layer.file("hard/empty", app(0o640), b"");
    layer.file("hard/five-megabytes", mode(0o644), &noise(5_000_001, 7));
    layer.file(name(b"hard/new\nline"), mode(0o644), b"1");
    layer.file(name(b"hard/\xff\xfe caf\xe9"), mode(0o644), b"2");
    layer.file("hard/caf\u{e9} \u{1f40d}", mode(0o644), b"3");
    layer.file("hard/ leading, 'quotes' and \"more\" ", mode(0o644), b"4");
    layer.file("hard/.wh", mode(0o644), b"no whiteout");
    let long = "n".repeat(255);
    layer.file(format!("hard/{long}"), mode(0o644), b"5");
    let mut deep = "hard".to_owned();
    for _ in 0..5 {
        deep = format!("{deep}/{}", "d".repeat(120));
        layer.folder(&deep, mode(0o755));
    }
    layer.file(format!("{deep}/{long}"), app(0o644), b"6");
    layer.symlink(
        "hard/long-link",
        &format!("/{}", ["l".repeat(200).as_str(); 5].join("/")),
    );
    layer.symlink("hard/nowhere", "../../../../etc/nothing");
    layer.node("hard/device", app(0o620), Some((1, 3)));
    layer.node("hard/high-device", mode(0o600), Some((259, 70_000)));
    layer.node("hard/pipe", app(0o622), None);
    layer.xattrs(&[("user.note", b"a\nb=c\0\xff")]);
    layer.file("hard/attributes", mode(0o644), b"7");
    layer.xattrs(&[("security.capability", &CAPABILITY)]);
    layer.file("hard/capable", mode(0o755), b"#!/bin/sh\n");
    layer.xattrs(&[("security.capability", &CAPABILITY)]);
    layer.file("hard/capable-alone", mode(0o755), b"#!/bin/sh\n");
    layer.xattrs(&[("user.of", b"a folder")]);
    layer.folder("hard/attributed", mode(0o750));
    layer.hard_link("hard/attributes-again", "hard/attributes", mode(0o644));

    layer.folder("links", mode(0o755));
    layer.file("links/first", app(0o604), b"one file, many names");
    layer.hard_link("links/second", "links/first", app(0o604));
    layer.hard_link("hard/third", "links/second", app(0o604));
    layer.symlink("links/symlink", "first");
    layer.hard_link("links/symlink-too", "links/symlink", mode(0o777));
    layer.node("links/pipe", mode(0o600), None);
    layer.hard_link("links/pipe-too", "links/pipe", mode(0o600));
    layer.file("links/pair-a", mode(0o644), b"a pair");
    layer.hard_link("links/pair-b", "links/pair-a", mode(0o644));

    for folder in [
        "hidden",
        "hidden/below",
        "opaque",
        "opaque/kept",
        "becomes-file",
    ] {
        layer.folder(folder, mode(0o755));
    }
    for file in [
        "hidden/file",
        "hidden/below/file",
        "opaque/file",
        "opaque/kept/file",
    ] {
        layer.file(file, mode(0o644), file.as_bytes());
    }
    layer.file("becomes-file/file", mode(0o644), b"gone");
    layer.file("becomes-folder", mode(0o644), b"gone");
    layer.file("hidden-file", mode(0o644), b"gone");
    layer.file("comes-back", mode(0o600), b"old");
    layer.folder("changes-mode", mode(0o755));
    layer.file("changes-mode/file", mode(0o644), b"stays");
    layer.bytes()
}

/// Hides, replaces and links what is in the lower one.
fn middle() -> Vec<u8> {
    let mut layer = Tape::new();
    layer.file(".wh.hidden", mode(0o600), b"");
    layer.file(".wh.hidden-file", mode(0o600), b"");
    layer.file(".wh.comes-back", mode(0o600), b"");
    layer.file(".wh.never-was", mode(0o600), b"");
    layer.folder("opaque", mode(0o711));
    layer.file("opaque/new", mode(0o644), b"new");
    layer.file("opaque/.wh..wh..opq", mode(0o600), b"");
    layer.file("becomes-file", app(0o640), b"a file now");
    layer.folder("becomes-folder", mode(0o755));
    layer.file("becomes-folder/file", mode(0o644), b"new");
    layer.folder("changes-mode", app(0o3770));
    // A link to a lower layer's file, and a file in the place of one of two names.
    layer.hard_link("links/from-above", "links/first", app(0o604));
    layer.hard_link("hard/capable-too", "hard/capable", mode(0o755));
    layer.file("links/pair-b", mode(0o600), b"alone");
    layer.file("links/.wh.second", mode(0o600), b"");
    // Below links to folders, which the layer doesn't have itself.
    layer.file("sbin/tool", mode(0o755), b"#!/bin/sh\n");
    layer.bytes()
}

/// Brings back what was hidden.
fn upper() -> Vec<u8> {
    let mut layer = Tape::new();
    layer.folder("hidden", app(0o700));
    layer.file("hidden/again", mode(0o644), b"again");
    layer.file("comes-back", mode(0o644), b"new");
    layer.file(
        "opaque/kept",
        mode(0o644),
        b"a file, where a hidden folder was",
    );
    layer.hard_link("usr/sbin/tool-too", "sbin/tool", mode(0o755));
    layer.symlink("becomes-file", "becomes-folder");
    layer.bytes()
}
