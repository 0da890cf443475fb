//! Any bytes as what a guest asks the folder server, with a real tree below it. Nothing outside the tree may change, and nothing in it may
//! become what a guest can't make.
//!
//! Each message has its length (2 bytes, little-endian), its kind and its node (a byte each), and its arguments; the rest of its head is
//! made right, or the server would look no further. Kind 255 is a whole message as it is.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use minivm_machine::folders::{Access, Folder, Limits, REPLY_MAX, Server};

/// A place with a tree that is shared, and something beside it.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("minivm-fuzz-folders-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        let place = Place(path);
        let shared = place.shared();
        for folder in ["a/b", ".git/hooks"] {
            fs::create_dir_all(shared.join(folder)).expect("the temporary folder can be written");
        }
        for (file, data) in [
            ("a/b/file", "file"),
            (".git/config", "config"),
            ("key", "hidden"),
            ("../outside", "outside"),
        ] {
            fs::write(shared.join(file), data).expect("the temporary folder can be written");
        }
        symlink("../outside", shared.join("link")).expect("a link can be made");
        symlink("..", shared.join("up")).expect("a link can be made");
        fs::hard_link(shared.join(".git/config"), shared.join("a/config"))
            .expect("a name can be added");
        place
    }

    fn shared(&self) -> PathBuf {
        self.0.join("shared")
    }

    fn check(&self) {
        let read = |path: &str| fs::read_to_string(self.0.join(path)).unwrap_or_default();
        assert_eq!(read("outside"), "outside");
        assert_eq!(read("shared/key"), "hidden");
        assert_eq!(read("shared/.git/config"), "config");
        let outside = fs::metadata(self.0.join("outside")).expect("it is still there");
        assert_eq!((outside.nlink(), outside.mode() & 0o111), (1, 0));
        assert_eq!(fs::read_dir(&self.0).map(Iterator::count).ok(), Some(2));
        check(&self.shared());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Checks that there are only files, folders and links, without set-ID bits.
fn check(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let found = fs::symlink_metadata(entry.path()).expect("it is there");
        let kind = found.file_type();
        assert!(kind.is_file() || kind.is_dir() || kind.is_symlink());
        assert!(kind.is_symlink() || found.mode() & 0o7000 == 0);
        assert!(found.len() <= 2 << 20);
        if kind.is_dir() {
            check(&entry.path());
        }
    }
}

pub(crate) fn run(data: &[u8]) {
    let place = Place::new();
    let mut folder = Folder::new(place.shared(), Access::ReadWrite);
    folder.hide.push("key".to_owned());
    folder.limits = Limits {
        nodes: 20,
        open: 10,
        growth: 1 << 20,
    };
    let server = Server::new(&[folder]).expect("the tree can be served");
    let mut reply = Vec::new();
    server.answer(0, &message(26, 0, &init()), &mut reply);
    let mut rest = data;
    while let Some((&[low, high, opcode, node], more)) = rest.split_first_chunk::<4>() {
        let len = usize::from(u16::from_le_bytes([low, high]) & 0x3ff).min(more.len());
        let (args, more) = more.split_at(len);
        rest = more;
        let request = match opcode {
            255 => args.to_vec(),
            _ => message(opcode.into(), node.into(), args),
        };
        server.answer(0, &request, &mut reply);
        assert!(reply.len() <= REPLY_MAX);
        if let Some(len) = reply.first_chunk::<4>() {
            assert_eq!(u32::from_ne_bytes(*len) as usize, reply.len());
        }
    }
    let _ = server.repositories(0);
    drop(server);
    place.check();
}

fn init() -> Vec<u8> {
    let words = [7_u32, 41, 1 << 17, u32::MAX];
    let mut args: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    args.resize(64, 0);
    args
}

fn message(opcode: u32, node: u64, args: &[u8]) -> Vec<u8> {
    let len = u32::try_from(40 + args.len()).unwrap_or(u32::MAX);
    let mut message = len.to_ne_bytes().to_vec();
    message.extend(opcode.to_ne_bytes());
    message.extend(1_u64.to_ne_bytes());
    message.extend(node.to_ne_bytes());
    message.extend([0; 16]);
    message.extend(args);
    message
}
