//! Images: how fast they become initramfs archives and EROFS images, against the shell commands that do the same; how soon a machine runs;
//! what init takes; and how fast data come in and out.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use super::sample::Times;
use super::{table, text};
use crate::process::{cannot_start, capture, shown};
use crate::report::Report;
use crate::setup::{self, Wanted};
use crate::{cargo, kvm};

/// The slow ones repeat well enough.
const SHELL_RUNS: usize = 3;
/// What goes through rings, and what goes through the UART, in bytes.
const BULK: usize = 10_000_000;
const TRICKLE: usize = 20_000;
/// What the large image has beside Python, in bytes.
const LARGE: u64 = 580_000_000;
/// Give up on the lab after this.
const LAB_TIMEOUT: &str = "14m";
/// What `minivm run --verbose` says when the image's archive and the rest of the sandbox are there, and when the machine runs.
pub(super) const SAYS: [&str; 2] = ["the sandbox is there", "the machine runs"];
/// The part in the lab.
const IN_LAB: &str = include_str!("image.sh");

#[derive(Args)]
pub(crate) struct ImageArgs {
    /// Runs of each kind
    #[arg(long, default_value_t = 10)]
    pub(crate) runs: usize,
    /// Leave out the lab
    #[arg(long)]
    pub(crate) native_only: bool,
}

pub(crate) fn run(args: &ImageArgs) -> Result<()> {
    let mut report = Report::new();
    let wanted = Wanted {
        lab: true,
        image_tools: true,
        ..Wanted::default()
    };
    let made = setup::prepare(&mut report, &wanted)?;
    let minivm = cargo::stage_minivm(&mut report)?;
    let folder = tempfile::tempdir_in(cargo::root().join("target"))?;
    let rootfs = made.initramfs.with_file_name("rootfs");
    let bench = Bench {
        runs: args.runs,
        kernels: [
            made.kernel,
            made.lab_kernel.context("set-up made the lab's kernel")?,
        ],
        layers: report.stage("image", || {
            let layers = image(folder.path(), &rootfs)?;
            Ok((layers, "Python, one layer, gzip".to_owned()))
        })?,
        folder: folder.path().to_owned(),
        rootfs,
        minivm,
    };
    bench.archives()?;
    if kvm::is_there() {
        bench.starts()?;
    } else {
        println!("\nthis host has no /dev/kvm: no figures for a machine's start");
    }
    if !args.native_only {
        bench.lab()?;
    }
    Ok(())
}

/// Makes the demo's root file system an image, as a layout and as what `docker save` writes; returns its layers' files.
fn image(folder: &Path, rootfs: &Path) -> Result<Vec<PathBuf>> {
    let layout = folder.join("layout");
    let image = format!("{}:py", layout.display());
    let bundle = text(&folder.join("bundle"));
    let tool = |words: &[&str]| capture(Command::new(words[0]).args(&words[1..]));
    tool(&["umoci", "init", "--layout", &text(&layout)])?;
    tool(&["umoci", "new", "--image", &image])?;
    tool(&["umoci", "unpack", "--rootless", "--image", &image, &bundle])?;
    let from = format!("{}/.", rootfs.display());
    tool(&["cp", "-a", &from, &format!("{bundle}/rootfs/")])?;
    tool(&["umoci", "repack", "--image", &image, &bundle])?;
    let saved = format!("docker-archive:{}:py:1", folder.join("saved.tar").display());
    let oci = format!("oci:{image}");
    tool(&[
        "skopeo",
        "--insecure-policy",
        "copy",
        "--quiet",
        &oci,
        &saved,
    ])?;

    let read =
        |path: &Path| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let blob = |descriptor: &Value| -> Result<PathBuf> {
        let digest = descriptor["digest"].as_str().context("no digest")?;
        Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let manifest = read(&blob(&read(&layout.join("index.json"))?["manifests"][0])?)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    layers.iter().map(blob).collect()
}

struct Bench {
    runs: usize,
    minivm: PathBuf,
    /// The guest's and the lab's.
    kernels: [PathBuf; 2],
    layers: Vec<PathBuf>,
    folder: PathBuf,
    /// Python's root file system, as a folder.
    rootfs: PathBuf,
}

impl Bench {
    fn minivm(&self) -> Command {
        let mut command = Command::new(&self.minivm);
        command
            .env("XDG_CACHE_HOME", self.folder.join("cache"))
            .env("MINIVM_COLD", "1")
            .env("MINIVM_KERNEL", &self.kernels[0])
            .env("MINIVM_LAB_KERNEL", &self.kernels[1]);
        command
    }

    fn oci(&self) -> String {
        format!("oci:{}:py", self.folder.join("layout").display())
    }

    fn saved(&self) -> String {
        format!("docker-archive:{}", self.folder.join("saved.tar").display())
    }

    /// An image becomes an archive, and an EROFS image.
    fn archives(&self) -> Result<()> {
        let out = self.folder.join("out");
        let build = |image: &str, how: &str| {
            let mut command = self.minivm();
            command.args(["build", image, "--compression", how, "-o"]);
            command.arg(&out);
            command
        };
        let erofs = |image: &str| {
            let mut command = self.minivm();
            command.args(["build", image, "--format", "erofs", "-o"]);
            command.arg(&out);
            command
        };
        let unpack: Vec<_> = (self.layers.iter())
            .map(|layer| format!("tar -xzf '{}'", layer.display()))
            .collect();
        let archive = "find . -print0 | cpio --null -o --format=newc --quiet";
        let shell = |make: &str| {
            let script = format!("set -e; mkdir root; cd root; {}; {make}", unpack.join("; "));
            let mut command = Command::new("sh");
            command.args(["-c", &script]).current_dir(&self.folder);
            command
        };
        let (oci, saved) = (self.oci(), self.saved());
        let mut contenders = [
            ("minivm build, plain", build(&oci, "none"), self.runs),
            (
                "… from docker save's archive",
                build(&saved, "none"),
                self.runs,
            ),
            ("minivm build, lz4", build(&oci, "lz4"), self.runs),
            ("minivm build, zstd", build(&oci, "zstd"), self.runs),
            ("minivm build, gzip", build(&oci, "gzip"), self.runs),
            ("minivm build, EROFS", erofs(&oci), self.runs),
            ("… from docker save's archive", erofs(&saved), self.runs),
            (
                "tar -x, find | cpio",
                shell(&format!("{archive} > ../out")),
                SHELL_RUNS,
            ),
            (
                "tar -x, find | cpio | gzip -9",
                shell(&format!("{archive} | gzip -9 > ../out")),
                SHELL_RUNS,
            ),
            (
                "tar -x, mkfs.erofs",
                shell("mkfs.erofs -Enoinline_data ../out . >&2"),
                SHELL_RUNS,
            ),
        ];
        let mut all = vec![Times::default(); contenders.len()];
        let mut sizes = vec![0; contenders.len()];
        // In turn, and the first round doesn't count.
        for round in 0..=self.runs {
            for ((_, command, runs), (times, size)) in
                contenders.iter_mut().zip(all.iter_mut().zip(&mut sizes))
            {
                if round > *runs {
                    continue;
                }
                // The shell's, from the round before.
                let _ = std::fs::remove_dir_all(self.folder.join("root"));
                let started = Instant::now();
                capture(command)?;
                if round > 0 {
                    times.to_end.push(millis(started));
                }
                *size = std::fs::metadata(&out)?.len();
            }
        }
        let names: Vec<_> = (contenders.iter().zip(&sizes))
            .map(|((name, ..), size)| format!("{name}, {} MB", size / 1_000_000))
            .collect();
        println!(
            "\nOn this host: a Python image becomes an initramfs or an EROFS image, {} runs each, {SHELL_RUNS} of the shell's",
            self.runs
        );
        table::print("exec → end", "ms", &names, &all, |times| &times.to_end);
        Ok(())
    }

    /// From exec to the guest's first instruction, with the archive made before.
    fn starts(&self) -> Result<()> {
        let images = [
            ("oci: layout", self.oci()),
            ("docker-archive:", self.saved()),
        ];
        let mut all = vec![Times::default(); images.len()];
        for round in 0..=self.runs {
            for ((_, image), times) in images.iter().zip(&mut all) {
                let [to_archive, to_guest] = self.start(image)?;
                if round > 0 {
                    times.to_mark.push(to_archive);
                    times.to_end.push(to_guest);
                }
            }
        }
        println!(
            "\nOn this host's KVM: a warm `minivm run`, until the guest's first instruction, {} runs each",
            self.runs
        );
        let names = images.map(|(name, _)| name.to_owned());
        let title = "exec → the sandbox is there";
        table::print(title, "ms", &names, &all, |times| &times.to_mark);
        table::print("exec → guest", "ms", &names, &all, |times| &times.to_end);
        Ok(())
    }

    /// Milliseconds to each thing that it says.
    fn start(&self, image: &str) -> Result<[f64; 2]> {
        let mut command = self.minivm();
        command.args([
            "run",
            "--verbose",
            "--accel",
            "kvm",
            "--quiet",
            image,
            "--",
            "true",
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let started = Instant::now();
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| cannot_start(&command, &error))?;
        let stderr = child.stderr.take().context("its stderr is not a pipe")?;
        let mut said = String::new();
        let mut times = Vec::new();
        for line in BufReader::new(stderr).lines() {
            let line = line?;
            if line.contains(SAYS[times.len()]) {
                times.push(millis(started));
            }
            if times.len() == SAYS.len() {
                break;
            }
            said.push_str(&line);
        }
        // Where the kernel would go from here is another question, and not one for every host's KVM.
        child.kill()?;
        child.wait()?;
        let times = times.try_into();
        times
            .ok()
            .with_context(|| format!("{} ended early: {said}", shown(&command)))
    }

    /// Makes the image with a large file, which a guest doesn't read; returns its name.
    fn large(&self) -> Result<String> {
        let root = self.folder.join("large");
        let copy = format!("{}/.", self.rootfs.display());
        std::fs::create_dir(&root)?;
        capture(Command::new("cp").args(["-a", &copy]).arg(&root))?;
        let mut noise = std::fs::File::open("/dev/urandom")?.take(LARGE);
        io::copy(&mut noise, &mut std::fs::File::create(root.join("large"))?)?;
        Ok(format!("dir:{}", root.display()))
    }

    /// Whole guests: cold runs of images in both forms, what init takes, and how fast data move.
    fn lab(&self) -> Result<()> {
        let script = self.folder.join("image.sh");
        std::fs::write(&script, IN_LAB)?;
        let mut command = self.minivm();
        command.args([
            "lab",
            "--memory",
            "6G",
            "--timeout",
            LAB_TIMEOUT,
            "--",
            "sh",
        ]);
        command.arg(&script).arg(&self.minivm).arg(self.oci());
        command.arg(self.large()?);
        let numbers = [self.runs, BULK, TRICKLE];
        command.args(numbers.map(|number| number.to_string()));
        let found = Found::parse(&capture(&mut command)?)?;
        println!(
            "\nIn the lab: a guest of the same image, {} runs each",
            self.runs
        );
        found.print_roots();
        found.print_phases();
        found.print_channel()
    }
}

/// What the script in the lab prints.
#[derive(Default)]
struct Found {
    /// Of runs of Python: until its end, and the memory that is in use then in MB, by the image's form.
    roots: BTreeMap<String, Times>,
    /// Of runs of `true`, in order: the kernel up to init, and from init's first instruction to the command's.
    boot: Times,
    init: Times,
    /// Seconds of each run, by what it moves.
    moved: Vec<(String, f64)>,
    /// KVM exits of a whole run.
    exits: Vec<(String, f64)>,
}

impl Found {
    fn parse(output: &str) -> Result<Self> {
        let mut found = Found::default();
        for line in output.lines() {
            let words: Vec<_> = line.splitn(2, ' ').collect();
            match words[..] {
                ["root", rest] => found.add_root(rest)?,
                ["phases", json] => {
                    let report: Value = serde_json::from_str(json)?;
                    let phase = |name: &str| -> Result<f64> {
                        let seconds = report["phases"][name].as_f64();
                        Ok(1e3 * seconds.with_context(|| format!("no {name} in {json}"))?)
                    };
                    let init = phase("init")? + phase("setup")?;
                    found.init.to_end.push(init);
                    found.boot.to_end.push(init + phase("boot")?);
                }
                ["moved", rest] => found.moved.push(named(rest)?),
                ["exits", rest] => found.exits.push(named(rest)?),
                _ => bail!("the script in the lab said {line:?}"),
            }
        }
        Ok(found)
    }

    /// Adds a run of Python; the first of each form doesn't count.
    fn add_root(&mut self, line: &str) -> Result<()> {
        let (name, json) = line.split_once(' ').context("no report")?;
        let report: Value = serde_json::from_str(json)?;
        let stdout = report["stdout"].as_str().unwrap_or_default();
        let words: Vec<f64> = stdout
            .split_whitespace()
            .map(|word| word.parse())
            .collect::<Result<_, _>>()?;
        let [4.0, total, free] = words[..] else {
            bail!("the guest said {stdout:?}, in {json}");
        };
        let phases = ["boot", "init", "setup", "run"].map(|name| &report["phases"][name]);
        let seconds = phases.map(|phase| {
            phase
                .as_f64()
                .with_context(|| format!("no phase in {json}"))
        });
        let mut to_end = 0.0;
        for seconds in seconds {
            to_end += 1e3 * seconds?;
        }
        match self.roots.get_mut(name) {
            None => drop(self.roots.insert(name.to_owned(), Times::default())),
            Some(times) => {
                times.to_end.push(to_end);
                times.to_mark.push((total - free) / 1e3);
            }
        }
        Ok(())
    }

    fn print_roots(&self) {
        let names = [
            ("initramfs", "33 MB, an initramfs"),
            ("mapped", "33 MB, mapped"),
            ("large", "613 MB, mapped"),
        ];
        let all = names.map(|(name, _)| self.roots.get(name).cloned().unwrap_or_default());
        let names = names.map(|(_, text)| text.to_owned());
        let title = "machine's start → Python's end, cold";
        table::print(title, "ms", &names, &all, |times| &times.to_end);
        let title = "the guest's memory that is in use then";
        table::print(title, "MB", &names, &all, |times| &times.to_mark);
    }

    fn print_phases(&self) {
        let names = [
            "init's first instruction → command",
            "machine's start → command",
        ];
        let all = [self.init.clone(), self.boot.clone()];
        table::print("start", "ms", &names.map(str::to_owned), &all, |times| {
            &times.to_end
        });
    }

    fn print_channel(&self) -> Result<()> {
        let kinds = [
            ("rings-out", "10 MB out, rings", BULK),
            ("rings-in", "10 MB in, rings", BULK),
            ("uart-out", "20 kB out, UART", TRICKLE),
            ("uart-in", "20 kB in, UART", TRICKLE),
        ];
        let times = kinds.map(|(kind, ..)| {
            let of_kind = self.moved.iter().filter(|(name, _)| name == kind);
            of_kind.map(|(_, seconds)| *seconds).collect::<Vec<_>>()
        });
        let rates = std::array::from_fn::<_, 4, _>(|index| Times {
            to_end: times[index]
                .iter()
                .map(|seconds| kinds[index].2 as f64 / 1e3 / seconds)
                .collect(),
            ..Times::default()
        });
        let names = kinds.map(|(_, name, _)| name.to_owned());
        table::print(
            "command's start → its end",
            "kB a second",
            &names,
            &rates,
            |rate| &rate.to_end,
        );
        let exits = |kind: &str| {
            let found = self.exits.iter().find(|(name, _)| name == kind);
            let found = found.with_context(|| format!("no exits of {kind}"));
            found.map(|&(_, exits)| exits)
        };
        println!("\nKVM exits for each MiB, beside those of a run that moves nothing");
        for (kind, name, bytes) in kinds {
            let more = exits(kind)? - exits("nothing")?;
            println!(
                "  {name:<34} {:>9.0}",
                more * f64::from(1 << 20) / bytes as f64
            );
        }
        Ok(())
    }
}

fn named(text: &str) -> Result<(String, f64)> {
    let (name, number) = text.split_once(' ').context("no number")?;
    Ok((name.to_owned(), number.parse()?))
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labs_lines_are_understood() {
        let phases = r#"{"phases":{"boot":0.5,"init":0.02,"setup":0.03}}"#;
        let found = Found::parse(&format!(
            "phases {phases}\nmoved uart-in 1.5\nexits nothing 7\n"
        ));
        let found = found.unwrap();
        assert_eq!(found.init.to_end, [50.0]);
        assert_eq!(found.boot.to_end, [550.0]);
        assert_eq!(found.moved, [("uart-in".to_owned(), 1.5)]);
        assert_eq!(found.exits, [("nothing".to_owned(), 7.0)]);
        assert!(Found::parse("what\n").is_err());
        let run = r#"{"stdout":"4\n3000 1000\n","phases":{"boot":1,"init":0,"setup":0,"run":0.5}}"#;
        let found = Found::parse(&format!("root large {run}\nroot large {run}\n")).unwrap();
        let large = &found.roots["large"];
        assert_eq!(
            (&*large.to_end, &*large.to_mark),
            (&[1500.0][..], &[2.0][..])
        );
    }
}
