//! What a guest finds of an image is what any other unpacker would have given it.

use std::collections::BTreeMap;
use std::process::Command;

use minivm_tests::program::{Program, run};
use serde_json::{Value, json};

use crate::made::images;
use crate::sources::unpacked;
use crate::tools::{Minivm, PATIENCE, folder};

/// A program that prints all about each file, a line each. The same program looks at the guest's files and at the unpacked ones.
///
/// Left out are folders' times and sizes; and whether a link or a pipe has several names, which an initramfs can't say of links.
const WALK: &str = r#"import hashlib, json, os, stat, sys
left_out = set(sys.argv[1:])
first = {}
def tell(path):
    if path in left_out:
        return
    s = os.lstat(path)
    kind = stat.S_IFMT(s.st_mode)
    seen = {"mode": oct(s.st_mode), "owner": [s.st_uid, s.st_gid],
        "xattrs": {name: os.getxattr(path, name, follow_symlinks=False).hex()
            for name in sorted(os.listxattr(path, follow_symlinks=False))}}
    if kind == stat.S_IFDIR:
        names = sorted(os.listdir(os.fsencode(path)))
    else:
        names = []
        seen["time"] = int(s.st_mtime)
    if kind == stat.S_IFREG:
        seen.update(links=s.st_nlink, same=first.setdefault((s.st_dev, s.st_ino), path))
        with open(path, "rb") as file:
            data = file.read()
        seen.update(size=s.st_size, data=hashlib.sha256(data).hexdigest())
    if kind == stat.S_IFLNK:
        seen["target"] = os.readlink(path)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        seen["device"] = [os.major(s.st_rdev), os.minor(s.st_rdev)]
    print(json.dumps([path, seen]))
    for name in names:
        tell(os.path.join(path, os.fsdecode(name)))
tell("/")
"#;

const PYTHON: &str = "/usr/local/bin/python3";
/// The kernel's own, and what is for a moment: minivm mounts over them, over the last one where the image has nothing there.
const MOUNTED: [&str; 4] = ["/proc", "/sys", "/dev", "/tmp"];

/// The lines by path.
fn parsed(lines: &str) -> BTreeMap<String, Value> {
    let parse = |line: &str| {
        // A name that is no text is half of a pair in JSON, which serde_json refuses: it is kept as it is written.
        let line = line.replace("\\ud", "\\\\ud");
        let (path, seen): (String, Value) = serde_json::from_str(&line).unwrap();
        (path, seen)
    };
    lines.lines().map(parse).collect()
}

#[test]
fn a_guest_finds_the_files_that_a_reference_unpacks() {
    let (images, minivm, folder) = (images(), Minivm::new(), folder());
    let root = folder.path().join("root");
    unpacked(images, "difficult", &root);
    let mut reference = Command::new("chroot");
    reference.arg(&root).args([PYTHON, "-SBc", WALK]);
    let reference = run(reference.args(MOUNTED), PATIENCE);
    assert_eq!(reference.code, Some(0), "{reference:?}");
    let reference = parsed(&reference.text());

    let mut command = minivm.command();
    command.args(["run", "--quiet", "--user", "0", "--entrypoint", PYTHON]);
    command
        .arg(images.oci("difficult"))
        .args(["--", "-SBc", WALK]);
    let guest = run(command.args(MOUNTED), PATIENCE);
    assert_eq!((guest.code, &*guest.stderr), (Some(0), ""));
    let mut guest = parsed(&guest.text());

    // The image has none, and minivm gives it some.
    for given in ["/etc/hostname", "/etc/machine-id"] {
        assert!(guest.remove(given).is_some(), "{given}");
    }
    for path in guest.keys() {
        assert!(reference.contains_key(path), "{path:?} is too much");
    }
    for (path, expected) in &reference {
        let found = guest.get(path);
        assert_eq!(found, Some(expected), "{path:?}");
    }
    // That the program does look.
    let of = |path: &str| &reference[path];
    assert_eq!(of("/hard/setuid")["mode"], "0o104755");
    assert_eq!(of("/hard/setuid")["owner"], json!([1234, 2345]));
    assert_eq!(of("/hard/high-device")["device"], json!([259, 70_000]));
    let capability = &of("/hard/capable-too")["xattrs"]["security.capability"];
    assert_eq!(capability, "0100000200200000000000000000000000000000");
    assert_eq!(of("/links/from-above")["links"], 3);
    assert_eq!(of("/links/from-above")["same"], "/hard/third");
    assert_eq!(of("/usr/sbin/tool")["links"], 2);
    assert_eq!(of("/opaque")["mode"], "0o40711");
    assert_eq!(of("/hard/five-megabytes")["size"], 5_000_001);
    assert!(reference.contains_key("/hard/\\udcff\\udcfe caf\\udce9"));
    assert!(reference.contains_key("/hard/new\nline"));
    for hidden in [
        "/hidden/file",
        "/opaque/file",
        "/hidden-file",
        "/links/second",
    ] {
        assert!(!reference.contains_key(hidden), "{hidden}");
    }
}

#[test]
fn an_image_is_run_as_its_configuration_says() {
    let (images, minivm) = (images(), Minivm::new());
    let mut command = minivm.command();
    command
        .args(["run", "--quiet"])
        .arg(images.oci("difficult"));
    let mut program = Program::start(&mut command);
    program.stdin = None;
    program.wait_for("\n", PATIENCE);
    program.signal(rustix::process::Signal::TERM);
    let ended = program.end(PATIENCE);
    assert_eq!((ended.code, &*ended.stderr), (Some(7), ""), "{ended:?}");
    let text = ended.text();
    let (found, rest) = text.split_once('\n').unwrap();
    assert_eq!(
        rest, "got 10\n",
        "SIGTERM here is the image's stop signal there"
    );
    let found: Value = serde_json::from_str(found).unwrap();
    assert_eq!(found["argv"], json!(["one", "two words"]));
    assert_eq!(found["cwd"], "/srv/work");
    assert_eq!((&found["uid"], &found["gid"]), (&json!(1234), &json!(2345)));
    assert_eq!(found["groups"], json!([29, 44, 2345]));
    assert_eq!(found["env"]["GREETING"], "good morning");
    assert_eq!(found["env"]["PATH"], "/usr/local/bin:/usr/bin:/bin");
    assert_eq!(found["env"]["HOME"], "/home/app");
}
