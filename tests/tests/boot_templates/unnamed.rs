//! Templates that runs make by themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use minivm_machine::Accel;
use minivm_machine::templates::Templates;
use minivm_tests::patience::wait_until;
use serde_json::Value;

use crate::guest::{kernel, minivm, report_of, scratch, small_image};

/// A cache and a kernel of its own: processes in the background of one test do nothing to the other.
struct Cache {
    name: &'static str,
    kernel: PathBuf,
}

impl Cache {
    fn new(name: &'static str) -> Self {
        let copy = scratch(&format!("{name}-vmlinux"));
        fs::copy(kernel(), &copy).unwrap();
        Cache { name, kernel: copy }
    }

    fn folder(&self) -> PathBuf {
        scratch(self.name).join("minivm")
    }

    fn templates(&self) -> Templates {
        Templates::new(&self.folder())
    }

    /// What is reported of a run of the small image.
    fn report(&self, kernel: &Path, flags: &[&str], variable: Option<&str>) -> Value {
        let mut command = minivm();
        command.env("XDG_CACHE_HOME", scratch(self.name));
        command.envs(variable.map(|value| ("MINIVM_COLD", value)));
        command.args(["run", "--accel", "kvm", "--json", "--kernel"]);
        command.arg(kernel).args(flags).arg(small_image());
        command.args(["--", "echo", "well"]);
        let report = report_of(command);
        let told = (&report["exit_code"], &report["stdout"]);
        assert_eq!(told, (&0.into(), &"well\n".into()), "{report}");
        report
    }

    /// Whether a run goes on from a template.
    fn warm(&self, flags: &[&str]) -> bool {
        self.report(&self.kernel, flags, None)["warm"]
            .as_bool()
            .unwrap()
    }

    /// The names of the unnamed templates, which are keys.
    fn keys(&self) -> Vec<String> {
        let listed = self.templates().list().unwrap();
        let names = listed.into_iter().map(|listed| listed.name);
        names.filter(|name| name.len() == 32).collect()
    }

    /// One that has been made by a run, and its folder.
    fn made(&self, flags: &[&str]) -> PathBuf {
        let before = self.keys();
        assert!(!self.warm(flags), "there is none yet");
        let new = || self.keys().into_iter().find(|key| !before.contains(key));
        wait_until("no template is made", || new().is_some());
        assert!(self.warm(flags), "there is one now");
        self.folder().join("templates").join(new().unwrap())
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // The lab keeps it in memory. What is still being made in the background fails then.
        let _ = fs::remove_dir_all(scratch(self.name));
    }
}

const MACHINE: [&str; 2] = ["-m", "90M"];

#[test]
fn a_cold_run_neither_makes_a_template_nor_uses_one() {
    let cache = Cache::new("cold");
    let colds: [(&[&str], _); 3] = [
        (&["--cold", "-m", "90M"], None),
        (&MACHINE, Some("1")),
        (&MACHINE, Some("no")),
    ];
    let all_cold = || {
        for (flags, variable) in colds {
            assert_eq!(cache.report(&cache.kernel, flags, variable)["warm"], false);
        }
    };
    all_cold();
    // The process that makes one has its lock as soon as it runs, and the folder of the locks before that. This is time enough to run.
    thread::sleep(Duration::from_secs(1));
    assert!(!cache.folder().join("templates").exists());
    cache.made(&MACHINE);
    all_cold();
    // As if it weren't set.
    for variable in ["", "0"] {
        let report = cache.report(&cache.kernel, &MACHINE, Some(variable));
        assert_eq!(report["warm"], true, "{variable:?}");
    }
}

#[test]
fn another_machine_goes_on_from_another_template() {
    let cache = Cache::new("others");
    cache.made(&MACHINE);
    assert!(!cache.warm(&["-m", "91M"]));
    assert!(!cache.warm(&["-m", "90M", "--cpus", "2"]));
    assert_eq!(cache.report(kernel(), &MACHINE, None)["warm"], false);
    assert!(cache.warm(&MACHINE), "it is still there for its own");
    // A kernel that was written to is another one, too.
    let file = fs::File::options()
        .append(true)
        .open(&cache.kernel)
        .unwrap();
    file.set_modified(SystemTime::now()).unwrap();
    assert!(!cache.warm(&MACHINE));
}

#[test]
fn a_damaged_template_that_nobody_has_named_is_made_anew() {
    let cache = Cache::new("damaged");
    let folder = cache.made(&MACHINE);
    let damages: [fn(&Path); 4] = [
        |folder| fs::write(folder.join("state"), "garbage").unwrap(),
        |folder| fs::write(folder.join("template.json"), "{").unwrap(),
        |folder| fs::remove_file(folder.join("state")).unwrap(),
        |folder| {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                if entry.file_name().to_str().unwrap().starts_with("memory-") {
                    fs::remove_file(entry.path()).unwrap();
                    fs::write(entry.path(), [0; 4096]).unwrap();
                }
            }
        },
    ];
    for damage in damages {
        damage(&folder);
        assert!(!cache.warm(&MACHINE), "it is booted instead");
        wait_until("it is not made again", || {
            cache
                .templates()
                .open(&cache.keys().pop().unwrap_or_default())
                .is_ok_and(|open| open.is_some())
        });
        assert!(cache.warm(&MACHINE), "it is there again");
    }
}

fn name(number: u64) -> String {
    format!("{number:032x}")
}

/// The record of one more, which is what is looked at where it is decided which are kept.
fn record(other: &Path, number: u64, used: SystemTime) {
    let copy = other.with_file_name(name(number));
    fs::create_dir(&copy).unwrap();
    let record = copy.join("template.json");
    fs::copy(other.join("template.json"), &record).unwrap();
    let record = fs::File::options().append(true).open(record);
    record.unwrap().set_modified(used).unwrap();
}

#[test]
fn a_missing_template_is_made_once() {
    let cache = Cache::new("opened");
    let folder = cache.made(&MACHINE);
    let templates = cache.templates();
    let key = folder.file_name().unwrap().to_str().unwrap();
    let recipe = templates.open(key).unwrap().unwrap().recipe;
    // A clock that was wrong: all others were used later than the one that is made now.
    for number in 0..8 {
        record(
            &folder,
            number,
            SystemTime::now() + Duration::from_secs(86_400),
        );
    }
    // This program is another one than minivm, and has another template.
    let first = templates.open_or_create(&recipe, &Accel::Kvm).unwrap();
    let again = templates.open_or_create(&recipe, &Accel::Kvm).unwrap();
    assert_eq!(first.made, again.made);
    assert_eq!(cache.keys().len(), 8);
    assert!(first.saved.is_some());
}

#[test]
fn the_eight_that_were_used_last_are_kept() {
    let cache = Cache::new("eight");
    let first = cache.made(&MACHINE);
    // The order in which they were used is 2, 1, 0, 7, … 3.
    for number in 0..8 {
        let used = SystemTime::now() - Duration::from_secs(1000 + 60 * ((number + 5) % 8));
        record(&first, number, used);
    }
    assert_eq!(cache.keys().len(), 9);
    let new = cache.made(&["-m", "91M"]);
    wait_until("none is removed", || cache.keys().len() == 8);
    assert!(first.exists() && new.exists(), "these were used last");
    for (number, kept) in [(2, false), (1, false), (0, true), (3, true)] {
        assert_eq!(cache.keys().contains(&name(number)), kept, "{number}");
    }
}
