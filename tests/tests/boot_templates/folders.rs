//! Folders of clones: each has those of its own request, and a template has none.

use std::fs;
use std::thread;

use crate::guest::{python, run_from, scratch, text_of};

#[test]
fn each_clone_has_the_folders_of_its_own_run() {
    let template = python();
    let script = "import os; print(sorted(os.listdir('/work')), open('/work/which').read()); open('/work/made', 'w').write('by a clone')";
    let run = |name: &str| {
        let folder = scratch(&format!("shared-{name}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("which"), name).unwrap();
        let volume = format!("{}:/work", folder.display());
        let text = text_of(run_from(template, &["-v", &volume, "--code", script], &[]));
        assert_eq!(text, format!("['which'] {name}\n"));
        let made = fs::read_to_string(folder.join("made")).unwrap();
        assert_eq!(made, "by a clone");
    };
    let run = &run;
    thread::scope(|scope| {
        for name in ["one", "another"] {
            scope.spawn(move || run(name));
        }
    });
    let script = "import os; print(os.path.exists('/work'), 'fuse' in open('/proc/mounts').read())";
    let text = text_of(run_from(template, &["--code", script], &[]));
    assert_eq!(text, "False False\n");
}
