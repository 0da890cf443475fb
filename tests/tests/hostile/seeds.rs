//! Good inputs of the fuzz targets, which fuzzers and the tests here change.
//!
//! `MINIVM_TEST_CORPUS` names a folder into which a test writes them, as cargo-fuzz has them: `fuzz/corpus`.

use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;

use minivm_guest::channel::{
    Exit, Hello, KernelLog, Refusal, STDIN_WINDOW, Status, Times, ToHost, VERSION,
};
use minivm_guest::newc::{Archive, Attributes};
use minivm_image::rootfs::{self, Limits};
use minivm_image::{Blob, Config, Image, Layer, Root};
use minivm_tests::kernel_file::{BzImage, CODE, Elf, Segment};

/// The good inputs of each target.
pub(crate) fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "erofs" => vec![
            erofs(&without_data()),
            erofs(&tar(&["one", "two"])),
            erofs(&tar(&[])),
        ],
        "documents" => lines(&DOCUMENTS, |text| text.replace('\n', "\0")),
        "folders" => vec![requests()],
        "frames" => vec![[&[7][..], &messages(&archive())].concat()],
        "kernel" => vec![elf(), BzImage::default().bytes()],
        "layer" => vec![
            [layer("one"), layer("one")].concat(),
            [layer("one"), layer("two")].concat(),
        ],
        "registry" => lines(&REGISTRY, |text| {
            text.replace("\n--\n", "\0").replace('\n', "\r\n")
        }),
        "ring" => vec![steps(4, 40), steps(1, 40)],
        "session" => {
            let talk = messages(&archive());
            vec![
                [&[0][..], &talk].concat(),
                [&[1][..], &talk[12..]].concat(),
                [&[2][..], &archive()].concat(),
                [&[1][..], &last_messages()].concat(),
            ]
        }
        "unpack" => vec![archive()],
        other => panic!("no target is called {other}"),
    }
}

fn lines(texts: &[&str], changed: fn(&str) -> String) -> Vec<Vec<u8>> {
    texts
        .iter()
        .map(|text| changed(text).into_bytes())
        .collect()
}

/// The targets that have good inputs. Those of devices need none.
const TARGETS: [&str; 10] = [
    "documents",
    "erofs",
    "folders",
    "frames",
    "kernel",
    "layer",
    "registry",
    "ring",
    "session",
    "unpack",
];

/// Documents in this order: index, manifest, configuration, `docker save`'s list.
const DOCUMENTS: [&str; 3] = [
    r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"$MANIFEST","size":$MANIFEST_SIZE,"platform":{"os":"linux","architecture":"amd64"},"annotations":{"org.opencontainers.image.ref.name":"1"}}]}
{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"$CONFIG","size":$CONFIG_SIZE},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"$LAYER","size":$LAYER_SIZE}]}
{"os":"linux","architecture":"amd64","config":{"Entrypoint":null,"Cmd":["/bin/sh","-c"],"Env":["PATH=/bin","A=1"],"WorkingDir":"/srv","User":"1000:1000","StopSignal":"SIGINT","Labels":{"a":"b"}},"rootfs":{"type":"layers","diff_ids":["$LAYER"]}}
[{"Config":"config.json","RepoTags":["a:1"],"Layers":["layer.tar"]}]"#,
    r#"{"schemaVersion":2,"manifests":[{"digest":"$MANIFEST","size":$MANIFEST_SIZE,"platform":{"os":"windows","architecture":"amd64"}},{"digest":"$MANIFEST","size":$MANIFEST_SIZE}]}
{"schemaVersion":2,"config":{"digest":"$CONFIG","size":$CONFIG_SIZE},"layers":[]}
{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":[]}}
[{"Config":"config.json","RepoTags":null,"Layers":[]}]"#,
    r#"{"schemaVersion":2,"manifests":[{"digest":"$MANIFEST","size":$MANIFEST_SIZE}]}
{"schemaVersion":2,"manifests":[{"digest":"$CONFIG","size":$CONFIG_SIZE,"platform":{"os":"linux","architecture":"amd64","variant":"v1"}}]}
{"schemaVersion":2,"manifests":[]}
[]"#,
];

/// What registries answer to the requests of a pull, one after another, with a line of two dashes between them.
const REGISTRY: [&str; 3] = [
    r#"HTTP/1.1 401 Unauthorized
Www-Authenticate: Bearer realm="http://$HOST/token",service="s",scope="repository:o/n:pull"
Content-Length: 0
Connection: close


--
HTTP/1.1 200 OK
Content-Length: 28
Connection: close

{"token":"t","expires_in":9}
--
HTTP/1.1 200 OK
Content-Type: application/vnd.oci.image.index.v1+json
Connection: close

{"schemaVersion":2,"manifests":[]}"#,
    r#"HTTP/1.1 307 Temporary Redirect
Location: http://$HOST/elsewhere
Content-Length: 0
Connection: close


--
HTTP/1.1 200 OK
Content-Type: application/vnd.oci.image.manifest.v1+json
Connection: close

{"schemaVersion":2,"config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}
--
HTTP/1.1 200 OK
Content-Length: 2
Connection: close

{}"#,
    r#"HTTP/1.1 429 Too Many Requests
Retry-After: 1
Connection: close

{"errors":[{"code":"TOOMANYREQUESTS","message":"later"}]}
--
HTTP/1.1 206 Partial Content
Content-Range: bytes 5-9/10
Connection: close

bytes"#,
];

/// An ELF file with a PVH note, of which the machine may be made.
pub(crate) fn elf() -> Vec<u8> {
    let note = Segment {
        kind: 4,
        // A name of four bytes, a value of four, of type 18: the PVH entry.
        ..Segment::new(
            0,
            b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\x10\0\x04\0\0\0\0\0\0\0\x01\0\0\0GNU\0",
        )
    };
    let mut elf = Elf::of_code(&[&[0xf4; 0x100]]);
    elf.segments.push(Segment::new(CODE + 0x1000, &[0; 0x100]));
    elf.segments.push(note);
    elf.bytes()
}

/// Steps of a kind among others: so many, of four bytes each.
fn steps(kind: u8, count: u8) -> Vec<u8> {
    let step = |number: u8| {
        [
            [number % 8, number, number % 3, 8],
            [kind, number, 5, number],
        ]
        .concat()
    };
    (0..count).flat_map(step).collect()
}

/// A cpio archive with an entry of each kind.
fn archive() -> Vec<u8> {
    let attributes = Attributes::new(0o755);
    let mut archive = Archive::new(Vec::new());
    archive.directory("folder", attributes).unwrap();
    archive
        .file("folder/file", attributes, 5, &b"bytes"[..])
        .unwrap();
    archive.symlink("folder/link", "file", attributes).unwrap();
    archive.finish().unwrap()
}

/// A layer with an entry of each kind, and what hides another's.
fn tar(names: &[&str]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(size);
        header
    };
    for name in names {
        let mut folder = header(tar::EntryType::Directory, 0);
        builder.append_data(&mut folder, name, io::empty()).unwrap();
        let mut file = header(tar::EntryType::Regular, 5);
        let path = format!("{name}/file");
        builder
            .append_data(&mut file, &path, &b"bytes"[..])
            .unwrap();
        for kind in [tar::EntryType::Symlink, tar::EntryType::Link] {
            let link = format!("{name}/{kind:?}");
            builder
                .append_link(&mut header(kind, 0), link, &path)
                .unwrap();
        }
        let mut hidden = header(tar::EntryType::Regular, 0);
        let path = format!("{name}/.wh.gone");
        builder.append_data(&mut hidden, path, io::empty()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An EROFS image of this layer, as the target's body takes it: without the first block's zeros, and without zeros at its end.
fn erofs(bytes: &[u8]) -> Vec<u8> {
    let mut layer = tempfile::tempfile().unwrap();
    layer.write_all(bytes).unwrap();
    let blob = Blob {
        len: bytes.len() as u64,
        file: Arc::new(layer),
        offset: 0,
        name: "layer".into(),
    };
    let image = Image {
        identity: "seed".into(),
        config: Config::default(),
        root: Root::Layers(vec![Layer {
            blob,
            diff_id: None,
        }]),
    };
    let mut out = tempfile::tempfile().unwrap();
    rootfs::write_erofs(&image, &Limits::default(), &out).unwrap();
    let mut image = Vec::new();
    out.rewind().unwrap();
    out.read_to_end(&mut image).unwrap();
    let used = image.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    [&image[1024..1024 + 128], &image[4096..used]].concat()
}

/// A layer with files of all kinds that take no blocks.
fn without_data() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let header = |kind| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(0);
        header
    };
    let attributes: [(&str, &[u8]); 3] = [
        ("SCHILY.xattr.user.some", b"value"),
        ("SCHILY.xattr.security.other", b""),
        ("mtime", b"1.5"),
    ];
    builder.append_pax_extensions(attributes).unwrap();
    for (kind, name) in [
        (tar::EntryType::Regular, "attributes"),
        (tar::EntryType::Directory, "folder"),
        (tar::EntryType::Fifo, "folder/fifo"),
    ] {
        builder
            .append_data(&mut header(kind), name, io::empty())
            .unwrap();
    }
    for (kind, name) in [
        (tar::EntryType::Symlink, "folder/link"),
        (tar::EntryType::Link, "folder/hard"),
    ] {
        builder
            .append_link(&mut header(kind), name, "attributes")
            .unwrap();
    }
    let mut holes = header(tar::EntryType::GNUSparse);
    holes.set_path("holes").unwrap();
    holes.as_gnu_mut().unwrap().set_real_size(1 << 20);
    holes.set_cksum();
    builder.append(&holes, io::empty()).unwrap();
    builder.into_inner().unwrap()
}

/// A session's messages until its files have come.
fn messages(files: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let hello = Hello {
        version: VERSION,
        rings: None,
    };
    for message in [
        ToHost::Hello(hello),
        ToHost::Started,
        ToHost::Room(STDIN_WINDOW),
        ToHost::Stdout(b"4\n"),
        ToHost::FilesOf(0, None),
        ToHost::Files(files),
        ToHost::Files(b""),
    ] {
        message.encode(&mut bytes);
    }
    bytes
}

/// A layer in half of an input.
fn layer(name: &str) -> Vec<u8> {
    let mut layer = tar(&[name]);
    layer.resize(16 << 10, 0);
    layer
}

/// The messages that come last, or in other sessions.
fn last_messages() -> Vec<u8> {
    let mut bytes = Vec::new();
    let exit = Exit {
        status: Status::Code(3),
        out_of_memory: false,
        user_time: 1,
        system_time: 2,
        peak_memory: 3,
        times: Times::default(),
    };
    for message in [
        ToHost::Warning("late".into()),
        ToHost::FilesOf(0, Some("there is no such folder".into())),
        ToHost::Log(KernelLog::default()),
        ToHost::Time,
        ToHost::Ready,
        ToHost::Refused(Refusal::NotFound("sh".into())),
        ToHost::Exit(exit),
    ] {
        message.encode(&mut bytes);
    }
    bytes
}

#[test]
fn seeds_are_written() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("MINIVM_TEST_CORPUS").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| temporary.path().into());
    for target in TARGETS {
        let folder = folder.join(target);
        fs::create_dir_all(&folder).unwrap();
        for (number, seed) in of(target).into_iter().enumerate() {
            assert!(seed.len() > 10, "{target}");
            fs::write(folder.join(format!("seed-{number}")), seed).unwrap();
        }
    }
}

#[test]
fn each_target_with_a_dictionary_is_one() {
    let fuzz = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz"));
    let names = |folder: &str, ending: &str| -> Vec<String> {
        let entries = fs::read_dir(fuzz.join(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter_map(|name| Some(name.strip_suffix(ending)?.to_owned()))
            .collect()
    };
    let targets = names("fuzz_targets", ".rs");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for target in &targets {
        assert!(
            manifest.contains(&format!("name = \"{target}\"\n")),
            "{target}"
        );
    }
    let dictionaries = names("dictionaries", ".dict");
    for name in dictionaries.iter().map(String::as_str).chain(TARGETS) {
        assert!(targets.iter().any(|target| target == name), "{name}");
    }
}

/// Requests to the folder server, of each kind, as the target has them.
fn requests() -> Vec<u8> {
    let words = |numbers: &[u32]| -> Vec<u8> {
        numbers
            .iter()
            .flat_map(|number| number.to_ne_bytes())
            .collect()
    };
    let name = |text: &str| [text.as_bytes(), &[0]].concat();
    // Nodes are numbered as they are found: 2 a, 3 b, 4 file, 5 .git, 6 config. Handles count from 1.
    let file = [1, 0, 0, 0];
    let requests: [(u8, u8, Vec<u8>); 33] = [
        (1, 1, name("a")),
        (1, 2, name("b")),
        (1, 3, name("file")),
        (1, 1, name(".git")),
        (1, 2, name("config")),
        (1, 1, name("key")),
        (1, 1, name("link")),
        (3, 4, words(&[0; 4])),
        (14, 4, words(&[2, 0])),
        (15, 4, words(&[&file[..], &[100], &[0; 5]].concat())),
        (
            16,
            4,
            [words(&[1, 0, 2, 0, 4, 0, 0, 0, 0, 0]), b"data".to_vec()].concat(),
        ),
        (
            4,
            4,
            words(&[&[0x1ff, 0, 1, 0, 8], &[0; 12][..], &[0o6755], &[0; 4]].concat()),
        ),
        (43, 4, words(&[1, 0, 0, 0, 100, 0, 0, 0])),
        (46, 4, words(&[1, 0, 0, 0, 4, 0])),
        (20, 4, words(&[1, 0, 0, 0])),
        (8, 2, [words(&[0o100_644, 0, 0, 0]), name("new")].concat()),
        (9, 2, [words(&[0o755, 0]), name(".git")].concat()),
        (6, 2, [name("l"), name("../../outside")].concat()),
        (13, 2, [words(&[4, 0]), name("again")].concat()),
        (35, 1, [words(&[0o101, 0o644, 0, 0]), name("made")].concat()),
        (12, 2, [words(&[1, 0]), name("new"), name("moved")].concat()),
        (
            45,
            1,
            [words(&[2, 0, 2, 0]), name("moved"), name("b")].concat(),
        ),
        (5, 7, Vec::new()),
        (34, 6, words(&[2, 0])),
        (14, 6, words(&[1, 0])),
        (27, 1, words(&[0, 0])),
        (28, 1, words(&[3, 0, 0, 0, 4096, 0, 0, 0, 0, 0])),
        (44, 1, words(&[3, 0, 0, 0, 4096, 0, 0, 0, 0, 0])),
        (17, 1, Vec::new()),
        (10, 1, name("made")),
        (11, 2, name(".git")),
        (42, 0, words(&[1, 0, 4, 0, 1, 0])),
        (18, 4, words(&[1, 0, 0, 0, 0, 0])),
    ];
    let message = |(opcode, node, args): &(u8, u8, Vec<u8>)| -> Vec<u8> {
        let len = u16::try_from(args.len()).expect("they are short");
        [&len.to_le_bytes()[..], &[*opcode, *node], args].concat()
    };
    requests.iter().flat_map(message).collect()
}
