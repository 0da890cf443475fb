//! The cache from outside: its limit, what `minivm prune` gets past, a cache that can only be read, a disk that is full.
//!
//! But for one, no machine runs: the archive of an image is made before the kernel is looked at, and there is none.

// Tests run: here and in labs

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{Ended, Program, run};
use minivm_tests::{busybox, given};
use tempfile::TempDir;

const ERROR: Option<i32> = Some(125);
/// What an image has beside our init, in bytes.
const DATA: usize = 4 << 20;

/// A cache and images of its own.
struct Home {
    folder: TempDir,
    /// What machines get of an image, which is also the name of its folder in the cache.
    format: &'static str,
}

impl Home {
    fn new() -> Self {
        Home::of("initramfs")
    }

    fn of(format: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = Home { folder, format };
        fs::create_dir(home.path("cache")).unwrap();
        home
    }

    /// One for each format.
    fn all() -> [Self; 2] {
        ["initramfs", "erofs"].map(Home::of)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn in_cache(&self, name: &str) -> PathBuf {
        self.path("cache/minivm").join(name)
    }

    /// The names in a folder of the cache.
    fn names(&self, folder: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.in_cache(folder)).into_iter().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }

    /// What was made of images for machines.
    fn entries(&self) -> Vec<PathBuf> {
        let mut entries = self.names(self.format);
        entries.retain(|path| !is_of_init(path));
        entries
    }

    /// Bytes of the archive that all images have.
    fn shared(&self) -> usize {
        let archives = self.names("initramfs").into_iter();
        let sizes = archives
            .filter(|path| is_of_init(path))
            .map(|path| size(&path));
        sizes.sum()
    }

    /// An image of one file.
    fn image(&self, name: &str) -> String {
        let root = self.path(name);
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("data"), vec![b'x'; DATA]).unwrap();
        format!("dir:{}", root.display())
    }

    /// An image with paths that are as long as they may be, so that the cache's own path makes them too long.
    fn long_image(&self) -> String {
        let mut tar = tar::Builder::new(Vec::new());
        let mut path = format!("{}/", "n".repeat(250)).repeat(16);
        path.push_str(&"d/".repeat(20));
        for name in ["file", "other"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(3);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("{path}{name}"), &b"abc"[..])
                .unwrap();
        }
        let file = self.path("long.tar");
        fs::write(&file, tar.into_inner().unwrap()).unwrap();
        format!("tar:{}", file.display())
    }

    fn minivm(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivm"));
        command.args(arguments);
        self.surround(&mut command);
        command
    }

    fn surround(&self, command: &mut Command) {
        command
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("MINIVM_COLD", "1")
            .env("MINIVM_ROOT_FORMAT", self.format)
            .env("MINIVM_CACHE_SIZE", "");
    }

    /// Makes the image's archive or EROFS image, and fails then; it says of which kernel.
    fn make(&self, image: &str) -> Command {
        self.minivm(&[
            "run",
            "--accel",
            "kvm",
            "--kernel",
            "/no/kernel",
            image,
            "/x",
        ])
    }

    /// Makes the image's archive or EROFS image, in a cache of this size; says which it is.
    fn made(&self, image: &str, limit: usize) -> PathBuf {
        let before = self.entries();
        let mut command = self.make(image);
        let ended = run(
            command.env("MINIVM_CACHE_SIZE", limit.to_string()),
            PATIENCE,
        );
        assert_at_kernel(&ended);
        let mut after = self.entries();
        after.retain(|path| !before.contains(path));
        assert_eq!(after.len(), 1, "{after:?}");
        after.remove(0)
    }

    /// Runs a script in a mount namespace of its own, as root there.
    fn script(&self, script: &str) -> Ended {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command
            .args(["--mount", "sh", "-euc", script])
            .env("MINIVM", env!("CARGO_BIN_EXE_minivm"))
            .env("CACHE", self.path("cache"));
        self.surround(&mut command);
        run(&mut command, PATIENCE)
    }
}

fn is_of_init(path: &Path) -> bool {
    let name = path.file_name().unwrap();
    name.to_str().unwrap().starts_with("init-")
}

fn size(path: &Path) -> usize {
    let len = fs::metadata(path).unwrap().len();
    len.try_into().unwrap()
}

fn assert_at_kernel(ended: &Ended) {
    assert_eq!(ended.code, ERROR, "{ended:?}");
    assert!(ended.stderr.contains("/no/kernel"), "{ended:?}");
}

#[test]
fn an_invalid_cache_size_is_refused_by_name() {
    let home = Home::new();
    let image = home.image("a");
    let built = home.path("built").display().to_string();
    for size in ["lots", "-1", "1.G", "10 G"] {
        for arguments in [
            &["run", "--kernel", "/no/kernel", &image, "/x"][..],
            &["build", "-o", &built, &image],
            &["template", "ls"],
            &["prune"],
        ] {
            let mut command = home.minivm(arguments);
            let ended = run(command.env("MINIVM_CACHE_SIZE", size), PATIENCE);
            assert_eq!(ended.code, ERROR, "{arguments:?}: {ended:?}");
            let line = ended.stderr.strip_suffix('\n').unwrap();
            let said = line.starts_with(&format!("minivm: MINIVM_CACHE_SIZE: \"{size}\" is not"));
            assert!(said && !line.contains('\n'), "{arguments:?}: {line}");
        }
    }
    assert!(home.names("").is_empty() && !home.path("built").exists());
}

#[test]
fn what_a_machine_gets_of_an_image_is_told_with_v() {
    let home = Home::of("");
    let image = home.image("a");
    let kernel = home.path("kernel/vmlinux");
    fs::create_dir(home.path("kernel")).unwrap();
    let options = [
        "ACPI_NFIT",
        "BLK_DEV_PMEM",
        "NVDIMM_PFN",
        "FS_DAX",
        "EROFS_FS",
        "OVERLAY_FS",
    ];
    let able = options
        .map(|option| format!("CONFIG_{option}=y\n"))
        .concat();
    let lacking = able.replace("CONFIG_FS_DAX=y", "# CONFIG_FS_DAX is not set");
    for (config, format, told, made) in [
        (
            None,
            "",
            "unpacked from an initramfs: there is no config beside",
            "initramfs",
        ),
        (Some(&lacking), "", "lacks CONFIG_FS_DAX=y", "initramfs"),
        (
            Some(&able),
            "initramfs",
            "MINIVM_ROOT_FORMAT says so",
            "initramfs",
        ),
        (Some(&able), "", "the image is mapped: 4.0 MiB", "erofs"),
        (
            Some(&lacking),
            "erofs",
            "the image is mapped: 4.0 MiB",
            "erofs",
        ),
    ] {
        if let Some(config) = config {
            fs::write(home.path("kernel/config"), config).unwrap();
        }
        let mut command = home.minivm(&["-v", "run", "--accel", "kvm", "--kernel"]);
        command.arg(&kernel).args([&image, "/x"]);
        let ended = run(command.env("MINIVM_ROOT_FORMAT", format), PATIENCE);
        assert_eq!(ended.code, ERROR, "{ended:?}");
        assert!(ended.stderr.contains(told), "{told}: {ended:?}");
        // The form that isn't needed isn't made, and all of it can go.
        for folder in ["initramfs", "erofs"] {
            let of_image = |path: &PathBuf| !is_of_init(path);
            let count = home.names(folder).into_iter().filter(of_image).count();
            assert_eq!(count, usize::from(folder == made), "{told}: {folder}");
        }
        let ended = run(&mut home.minivm(&["prune"]), PATIENCE);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(home.names(made).is_empty());
    }
    let mut command = home.make(&image);
    let ended = run(command.env("MINIVM_ROOT_FORMAT", "cpio"), PATIENCE);
    assert_eq!(ended.code, ERROR, "{ended:?}");
    let line =
        "minivm: MINIVM_ROOT_FORMAT: \"cpio\" is not a format of roots: use initramfs or erofs\n";
    assert_eq!(ended.stderr, line);
}

#[test]
fn what_was_used_longest_ago_goes_when_something_new_comes() {
    for home in Home::all() {
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| home.image(name));
        let one = size(&home.made(&a, 1 << 30));
        let limit = 3 * one + home.shared() + 4096;
        let of_a = home.entries().remove(0);
        let of_b = home.made(&b, limit);
        let of_c = home.made(&c, limit);
        // It is there, so nothing is made, and nothing goes.
        assert_at_kernel(&run(&mut home.make(&a), PATIENCE));
        let of_d = home.made(&d, limit);
        assert!(of_a.exists() && !of_b.exists() && of_c.exists() && of_d.exists());
        // A folder that was touched is another image.
        fs::write(home.path("d/data"), vec![b'y'; DATA]).unwrap();
        home.made(&d, limit);
        assert!(of_a.exists() && !of_c.exists() && of_d.exists());
        assert_eq!(home.entries().len(), 3);
    }
}

#[test]
fn an_image_that_is_larger_than_the_limit_runs_and_goes_first_afterwards() {
    for home in Home::all() {
        let (small, large) = (home.image("small"), home.image("large"));
        let of_small = home.made(&small, 1 << 30);
        let size = size(&of_small) + home.shared();
        fs::write(home.path("large/more"), vec![b'x'; 2 * DATA]).unwrap();
        let limit = 2 * size + 4096;
        let of_large = home.made(&large, limit);
        assert!(of_small.exists(), "it would not have made room enough");
        let of_other = home.made(&home.image("other"), limit);
        assert!(of_small.exists() && !of_large.exists() && of_other.exists());
    }
}

#[test]
fn runs_at_once_in_a_cache_for_one_of_them_all_get_on() {
    for home in Home::all() {
        let images: Vec<_> = (0..6)
            .map(|number| home.image(&number.to_string()))
            .collect();
        let mut runs: Vec<_> = (images.iter().chain(&images))
            .map(|image| Program::start(home.make(image).env("MINIVM_CACHE_SIZE", "8M")))
            .collect();
        for program in runs.drain(..) {
            assert_at_kernel(&program.end(PATIENCE));
        }
        home.made(&home.image("last"), 8 << 20);
        assert_eq!(home.entries().len(), 1);
    }
}

#[test]
fn an_image_of_paths_that_are_too_long_is_pruned_and_can_come_again() {
    let home = Home::new();
    let image = home.long_image();
    for _ in 0..2 {
        // Whether there is a runsc is another matter.
        run(
            &mut home.minivm(&["run", "--backend", "gvisor", &image, "/x"]),
            PATIENCE,
        );
        assert_eq!(home.names("rootfs").len(), 2, "a root and its lock");
        let ended = run(&mut home.minivm(&["prune"]), PATIENCE);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.text(), "freed 6 B\n", "{ended:?}");
        assert!(home.names("rootfs").is_empty());
    }
    // As a kill in the middle of it leaves it.
    run(
        &mut home.minivm(&["run", "--backend", "gvisor", &image, "/x"]),
        PATIENCE,
    );
    let root = home.names("rootfs").remove(0);
    fs::rename(&root, root.with_extension("partial")).unwrap();
    run(
        &mut home.minivm(&["run", "--backend", "gvisor", &image, "/x"]),
        PATIENCE,
    );
    assert!(root.is_dir() && !root.with_extension("partial").exists());
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn what_cannot_be_pruned_is_told_of_and_the_rest_goes() {
    let home = Home::new();
    for name in ["a", "b", "c"] {
        let root = home.in_cache("rootfs").join(name);
        fs::create_dir_all(root.join("usr/mounted")).unwrap();
        fs::write(root.join("usr/file"), [b'x'; 1000]).unwrap();
    }
    fs::create_dir_all(home.in_cache("initramfs/odd/closed")).unwrap();
    fs::write(home.in_cache("initramfs/x.cpio"), [b'x'; 1000]).unwrap();
    fs::create_dir_all(home.in_cache("erofs")).unwrap();
    fs::write(home.in_cache("erofs/x.erofs"), [b'x'; 1000]).unwrap();
    fs::create_dir_all(home.in_cache("templates/0123456789abcdef0123456789abcdef")).unwrap();
    let mounted = home.in_cache("rootfs/b/usr/mounted");
    let ended = home.script(
        "mount -t tmpfs none $CACHE/minivm/rootfs/b/usr/mounted; \
         mkdir $CACHE/minivm/rootfs/b/usr/mounted/here; \
         code=0; $MINIVM prune || code=$?; \
         ls $CACHE/minivm/rootfs/b*/usr/mounted; exit $code",
    );
    assert_eq!(ended.code, ERROR, "{ended:?}");
    assert_eq!(ended.text(), "freed 4.88 KiB\nhere\n", "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    let partial = mounted.to_str().unwrap().replace("/b/", "/b.partial/");
    assert!(ended.stderr.contains(&partial), "{ended:?}");
    assert!(ended.stderr.contains("unmount"), "{ended:?}");
    // It isn't mounted here.
    let ended = run(&mut home.minivm(&["prune"]), PATIENCE);
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{ended:?}"
    );
    assert!(home.names("rootfs").is_empty());
    assert!(
        home.names("templates")
            .iter()
            .all(|path| path.extension().is_some())
    );
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn file_names_from_images_send_no_codes_to_the_terminal() {
    let home = Home::new();
    let odd = std::ffi::OsStr::from_bytes(b"a\x1b[2J\nminivm: b");
    let root = home.in_cache("rootfs/k").join(odd);
    fs::create_dir_all(&root).unwrap();
    let ended = home.script("mount -t tmpfs none $CACHE/minivm/rootfs/k/a*; $MINIVM prune");
    assert_eq!(ended.code, ERROR, "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(!ended.stderr.contains('\x1b'), "{ended:?}");
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_cache_that_can_only_be_read_is_used_as_it_is() {
    for home in Home::all() {
        let image = home.image("a");
        home.made(&image, 1 << 30);
        let gvisor = || home.minivm(&["run", "--backend", "gvisor", &image, "/x"]);
        let usual = run(&mut gvisor(), PATIENCE);
        assert_eq!(home.names("rootfs").len(), 2);
        let read_only = "mount --bind $CACHE $CACHE; mount -o remount,ro,bind $CACHE; ";
        let ended = home.script(&format!(
            "{read_only} MINIVM_CACHE_SIZE=1K $MINIVM run --accel kvm --kernel /no/kernel {image} /x"
        ));
        assert_at_kernel(&ended);
        let ended = home.script(&format!(
            "{read_only} $MINIVM run --backend gvisor {image} /x"
        ));
        // Whether there is a runsc, and can run here, is another matter.
        assert!(!ended.stderr.contains("Read-only"), "{usual:?} {ended:?}");
        let other = home.image("b");
        let ended = home.script(&format!(
            "{read_only} $MINIVM run --accel kvm --kernel /no/kernel {other} /x"
        ));
        assert_eq!(ended.code, ERROR, "{ended:?}");
        assert!(ended.stderr.contains("Read-only file system"), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_full_disk_is_told_of_and_the_cache_goes_on() {
    for home in Home::all() {
        let (large, small) = (home.image("large"), home.image("small"));
        fs::write(home.path("large/more"), vec![b'x'; 2 * DATA]).unwrap();
        let make = |image: &str| format!("$MINIVM run --accel kvm --kernel /no/kernel {image} /x");
        let ended = home.script(&format!(
            "mount -t tmpfs -o size=9M none $CACHE; ! {}; ! {}; du -a $CACHE >&2; \
             dd if=/dev/zero of=$CACHE/full 2>/dev/null || true; $MINIVM prune",
            make(&large),
            make(&small)
        ));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let mut lines = ended.stderr.lines();
        let full = lines.next().unwrap();
        assert!(full.contains("No space left on device"), "{full}");
        assert!(full.contains("minivm prune"), "{full}");
        assert!(lines.next().unwrap().contains("/no/kernel"), "{ended:?}");
        assert!(!ended.stderr.contains("partial"), "{ended:?}");
        assert!(ended.text().starts_with("freed "), "{ended:?}");
    }
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn an_image_of_many_small_files_fits_by_itself() {
    const FILES: usize = 40_000;
    let home = Home::new();
    let root = home.path("root");
    busybox::make_root(&root, "sh ls wc");
    let file = home.path("many.tar");
    let mut tar = tar::Builder::new(BufWriter::new(File::create(&file).unwrap()));
    tar.follow_symlinks(false);
    tar.append_dir_all("", &root).unwrap();
    for number in 0..FILES {
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("many/{number}"), &b"hello"[..])
            .unwrap();
    }
    tar.into_inner().unwrap().flush().unwrap();
    let kernel = given::path("MINIVM_TEST_KERNEL");
    let lab_kernel = match std::env::var_os("MINIVM_LAB_KERNEL") {
        Some(folder) => folder.into(),
        None => minivm_machine::cache::folder()
            .unwrap()
            .join("kernel/lab/current"),
    };
    let mut command = home.minivm(&["run", "-q", "--kernel", kernel.to_str().unwrap()]);
    command.env("MINIVM_LAB_KERNEL", lab_kernel);
    command.arg(format!("tar:{}", file.display()));
    command.args(["--", "sh", "-c", "ls /many | wc -l"]);
    let ended = run(&mut command, PATIENCE);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.text(), format!("{FILES}\n"));
}

#[test]
fn nothing_is_followed_out_of_the_cache() {
    let home = Home::new();
    let outside = home.path("outside");
    fs::create_dir(&outside).unwrap();
    File::create(outside.join("file")).unwrap();
    for folder in ["rootfs/a/x", "initramfs/x", "erofs/x", "images/blobs/x"] {
        let link = home.in_cache(folder);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&outside, link).unwrap();
    }
    let ended = run(&mut home.minivm(&["prune"]), PATIENCE);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(Path::new(&outside.join("file")).exists());
    assert!(home.names("rootfs").is_empty() && home.names("initramfs").is_empty());
    assert!(home.names("erofs").is_empty());
}
