//! No two clones give the same random number, whichever process draws it.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use minivm_guest::channel::Request;
use minivm_machine::templates::Template;
use minivm_tests::stress;

use crate::guest::{Made, answer, code, python_image, request, small};

/// How many clones run at a time.
const AT_ONCE: usize = 4;

/// Everything that draws random numbers has drawn some before the machine is saved: what keeps a generator's state has one.
const WARM: &str = r#"
import multiprocessing, os, random, secrets, ssl, subprocess, tempfile, uuid
subprocess.run(["true"])
random.random(), secrets.token_hex(8), uuid.uuid1(), uuid.uuid4(), ssl.RAND_bytes(8), os.urandom(8)
tempfile.mktemp(), multiprocessing.current_process().authkey
"#;

/// Each line is a kind of number and what was drawn.
const DRAW: &str = r#"
def tell(kind, value):
    print(kind, value, sep=": ")

tell("os.urandom", os.urandom(8).hex())
tell("random", random.random())
tell("random.Random", random.Random().random())
tell("uuid1", uuid.uuid1())
tell("uuid1's node", uuid.uuid1().node)
tell("uuid4", uuid.uuid4())
tell("secrets", secrets.token_hex(8))
tell("tempfile", tempfile.mktemp())
tell("multiprocessing", bytes(multiprocessing.current_process().authkey).hex())
tell("ssl", ssl.RAND_bytes(8).hex())
tell("machine-id", open("/etc/machine-id").read().strip())
tell("boot_id", open("/proc/sys/kernel/random/boot_id").read().strip())
script = "head -c 8 /dev/urandom; cat /proc/self/maps"
program = subprocess.run(["sh", "-c", script], capture_output=True).stdout
tell("a new program's", program[:8].hex())
tell("addresses", "+".join(line.split("-")[0] for line in program[8:].decode("latin-1").splitlines()))
"#;
const KINDS: usize = 14;

const DRAW_WITHOUT_PYTHON: &str = r#"
echo random: $(cat /proc/sys/kernel/random/uuid)
echo machine-id: $(cat /etc/machine-id)
echo boot_id: $(cat /proc/sys/kernel/random/boot_id)
echo addresses: $(cat /proc/self/maps)
"#;
const KINDS_WITHOUT_PYTHON: usize = 4;

/// Runs the request in so many clones, and looks whether all lines that they print differ.
fn assert_all_differ(template: &Template, request: &Request, forks: usize, kinds: usize) {
    let (begun, seen) = (
        AtomicUsize::new(0),
        Mutex::new(HashMap::<_, HashSet<_>>::new()),
    );
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while begun.fetch_add(1, Ordering::Relaxed) < forks {
                    let text = answer(template, request.clone());
                    let mut seen = seen.lock().unwrap();
                    for line in text.lines() {
                        let (kind, value) = line.split_once(": ").unwrap();
                        let kind = seen.entry(kind.to_owned()).or_default();
                        let new = kind.insert(value.to_owned());
                        assert!(new, "two clones have the same {line}");
                    }
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.len(), kinds, "{:?}", seen.keys());
    for (kind, values) in seen {
        assert_eq!(values.len(), forks, "{kind}");
    }
}

#[test]
fn no_two_clones_draw_the_same_random_number() {
    let template = Made::new("drawn", &python_image(), &["--warm", WARM]);
    let forks = stress::count(12, 400);
    assert_all_differ(&template.open(), &code(DRAW), forks, KINDS);
}

#[test]
fn no_two_clones_without_an_interpreter_do_either() {
    let draw = request(&["sh", "-c", DRAW_WITHOUT_PYTHON]);
    let forks = stress::count(12, 100);
    assert_all_differ(&small(), &draw, forks, KINDS_WITHOUT_PYTHON);
}
