//! A root that the guest reads in place: an EROFS image in persistent memory, with a layer in the guest's own memory over it.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use minivm_tests::given;
use minivm_tests::program::{self, Ended, Program};
use minivm_tests::stress;

use crate::guest::{PATIENCE, assert_well, minivm, noise, our_kernel, scratch};

const CMDLINE: &str = "console=ttyS0 quiet reboot=t panic=-1";
const MAPPED: &str = "root=/dev/pmem0";
/// The programs in the image.
const APPLETS: &str = "awk cat chmod chown cp cut dd df echo grep ln ls mkdir mount mv rm sh sha256sum sort stat sync touch tr uniq wc";
/// Bytes of the image's large file.
const LARGE: usize = 6 << 20;

/// The image in two forms: what init is started with, and the file that the guest maps.
struct Image {
    initramfs: PathBuf,
    erofs: PathBuf,
}

/// An image whose own command is the shell script `/does/JOB`, for a job on the kernel's command line.
fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let root = scratch("mapped");
        let _ = fs::remove_dir_all(&root);
        minivm_tests::busybox::make_root(&root, APPLETS);
        for folder in ["data/below", "does", "root"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o751)).unwrap();
        fs::write(root.join("large"), noise(LARGE)).unwrap();
        for file in ["one", "below/file"] {
            fs::write(root.join("data").join(file), file).unwrap();
        }
        fs::hard_link(root.join("data/one"), root.join("data/two")).unwrap();
        for (job, script) in [
            ("checks", CHECKS),
            ("writes", WRITES),
            ("reads", READS),
            ("sums", SUMS),
        ] {
            fs::write(root.join("does").join(job), script).unwrap();
        }
        fs::write(root.join("sums"), sums(&root)).unwrap();
        let config = r#"{"Entrypoint": ["/bin/sh", "-c", "exec sh /does/$(tr ' ' '\n' < /proc/cmdline | grep job= | cut -c 5-)"], "Env": ["PATH=/bin"]}"#;
        let saved = minivm_tests::busybox::save_image(&root, config, &scratch("mapped-image"));
        let build = |format: &str| {
            let file = scratch(&format!("mapped.{format}"));
            let mut build = minivm();
            build.args(["build", "--quiet", "--format", format, &saved, "-o"]);
            assert_well(&program::run(build.arg(&file), PATIENCE));
            file
        };
        Image {
            initramfs: build("initramfs"),
            erofs: build("erofs"),
        }
    })
}

/// Each check prints its name if it fails.
const CHECKS: &str = r#"
is() { [ "$2" = "$3" ] || echo "failed: $1 is $2, not $3"; }
free() { df -k / | awk 'END { print $4 }'; }

is sums "$(sha256sum -c /sums 2>&1 | grep -v OK)" ""
is mounts "$(awk '$2 == "/" { print $1, $3, substr($4, 1, 3) }' /proc/mounts)" "overlay overlay rw,"
is leftovers "$(grep -c minivm: /proc/mounts) $(ls -a / | grep -c minivm) $(ls /init 2>&1 | grep -c 'No such')" "0 0 1"
is size "$(df -k / | awk 'END { print ($2 > 100 * 1024 && $2 < 130 * 1024) }')" 1
is root "$(stat -c %a /)" 751
mkdir /again && mount -t erofs -o ro /dev/pmem0 /again
is "in place" "$(awk '$2 == "/again" { print ($4 ~ /dax=always/) }' /proc/mounts)" 1

echo more >> /data/one
is "a hard link" "$(cat /data/two)" onemore
is links "$(stat -c %h /data/one)" 2
is "the image's own" "$(cat /again/data/two)" one
folder=$(stat -c %i /data)
mv /data /moved && mkdir /data && mv /moved /data/moved
is "a folder that was moved" "$(cat /data/moved/two /data/moved/below/file)" "onemore
below/file"
is "its number" "$(stat -c %i /data/moved)" $folder
is devices "$(stat -c %d / /data/moved /data/moved/one /large /bin/busybox | sort | uniq | wc -l)" 1
number=$(stat -c %i /large)
before=$(free)
chmod 600 /large && chown 7:8 /large
is "memory for a new mode" "$(free | awk -v before=$before '{ print (before - $1 < 1024) }')" 1
is "a new mode" "$(stat -c '%a %u %g' /large)" "600 7 8"
echo x >> /large
is "memory for new content" "$(free | awk -v before=$before '{ print (before - $1 > 4096) }')" 1
is "a number" "$(stat -c %i /large)" $number
is "a program that runs" "$( (echo x >> /bin/busybox) 2>&1 | grep -c 'busy')" 1
rm -r /does && mkdir /does
is "a folder in place of another" "$(ls /does | wc -l)" 0
touch /new && ln /new /data/new && mv /new /newer
is "a new file" "$(stat -c %h /newer)" 2
cp /large /copy && sync
echo checked
"#;

/// Writes to the first and the last pages of the device, on which nothing is mounted: a store of eight bytes is an exit.
const WRITES: &str = r#"
echo 0 > /sys/bus/nd/devices/region0/read_only
pages=$(($(cat /sys/block/pmem0/size) / 8))
for page in 0 $((pages - 4)); do dd if=/large of=/dev/pmem0 bs=4096 count=4 seek=$page conv=notrunc 2>&1; done
sync
echo written
"#;

/// Reads all of the large file each time that a line comes.
const READS: &str = r#"
echo ready
while read line; do sha256sum /large; done
"#;

/// Compares the files with their digests.
const SUMS: &str = r#"
sha256sum -c /sums 2>&1 | grep -v ': OK$'
echo "compared, $(awk '/^MemFree/ { print ($2 > 32 * 1024) }' /proc/meminfo)"
"#;

/// A machine that does a job of the image's.
fn machine(job: &str, root: &str, erofs: Option<&Path>) -> Command {
    let mut command = minivm();
    command.args(["--accel", "kvm", "--memory", "256M", "--kernel"]);
    command
        .arg(our_kernel())
        .arg("--initramfs")
        .arg(&image().initramfs);
    command.args(["--cmdline", &format!("{CMDLINE} {root} job={job}")]);
    if let Some(erofs) = erofs {
        command.arg("--pmem").arg(erofs);
    }
    command
}

fn end_of(mut command: Command) -> Ended {
    program::run(&mut command, PATIENCE)
}

/// The lines of `sha256sum` for the root's files.
fn sums(root: &Path) -> String {
    let mut lines = String::new();
    for file in [
        "bin/busybox",
        "large",
        "data/one",
        "data/two",
        "data/below/file",
        "does/checks",
    ] {
        writeln!(lines, "{}  /{file}", digest(&root.join(file))).unwrap();
    }
    lines
}

fn digest(file: &Path) -> String {
    let sum = Command::new(given::busybox())
        .arg("sha256sum")
        .arg(file)
        .output();
    String::from_utf8(sum.unwrap().stdout).unwrap()[..64].to_owned()
}

/// A copy of the image's file for one test.
fn copy(name: &str) -> PathBuf {
    let copy = scratch(name);
    fs::copy(&image().erofs, &copy).unwrap();
    copy
}

#[test]
fn a_mapped_root_behaves_as_one_file_system() {
    let ended = end_of(machine("checks", MAPPED, Some(&image().erofs)));
    assert_well(&ended);
    let text = ended.text();
    let lines: Vec<&str> = text.lines().collect();
    // The kernel's own last line, an emergency message: `quiet` doesn't suppress it.
    assert!(
        lines.len() == 2 && lines[0] == "checked" && lines[1].ends_with("reboot: Power down"),
        "{text}"
    );
}

#[test]
fn what_a_guest_writes_to_its_image_reaches_no_file() {
    let file = copy("mapped-written");
    let before = digest(&file);
    let text = end_of(machine("writes", "", Some(&file))).text();
    let done = text.matches("4+0 records out").count();
    assert!(done == 2 && text.contains("written"), "{text}");
    assert_eq!(digest(&file), before);
}

#[test]
fn a_file_that_is_cut_short_ends_its_machine_with_a_line() {
    let file = copy("mapped-cut");
    let mut machine = Program::start(&mut machine("reads", MAPPED, Some(&file)));
    machine.wait_for("ready\n", PATIENCE);
    let cut = fs::File::options().write(true).open(&file).unwrap();
    cut.set_len(4096).unwrap();
    machine.write(b"\n").unwrap();
    let ended = machine.end(PATIENCE);
    assert_ne!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(ended.stderr.contains("mapped-cut"), "{ended:?}");
}

/// The kernel's page structures take a sixty-fourth of it, and the rest of the 256 MiB is the command's.
#[test]
fn an_image_may_be_much_larger_than_the_memory() {
    let file = copy("mapped-large");
    let image = fs::File::options().write(true).open(&file).unwrap();
    image.set_len(stress::count(1, 6) << 30).unwrap();
    let ended = end_of(machine("sums", MAPPED, Some(&file)));
    assert_well(&ended);
    assert!(ended.text().starts_with("compared, 1\n"), "{ended:?}");
}

#[test]
fn a_root_that_cannot_be_mapped_is_told_in_one_line() {
    let broken = copy("mapped-broken");
    fs::write(&broken, vec![0; 1 << 20]).unwrap();
    for (erofs, parts) in [
        (None, ["no /dev/pmem0", "CONFIG_ACPI_NFIT"]),
        (Some(&*broken), ["EROFS", "/dev/pmem0"]),
    ] {
        let text = end_of(machine("checks", MAPPED, erofs)).text();
        let told: Vec<_> = text
            .lines()
            .filter(|line| line.contains("minivm-init: "))
            .collect();
        assert_eq!(told.len(), 1, "{text}");
        for part in parts {
            assert!(told[0].contains(part), "{text}");
        }
        assert!(!text.contains("panic"), "{text}");
    }
}
