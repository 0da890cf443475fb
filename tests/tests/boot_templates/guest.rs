//! How the tests make templates and go on from them.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use minivm_guest::channel::Request;
use minivm_machine::template::ResumeOptions;
use minivm_machine::templates::{Template, Templates};
use minivm_machine::{End, Report, Session};
use minivm_tests::output::Shared;
pub(crate) use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{self, Ended};
use minivm_tests::{busybox, given};
use serde_json::Value;

/// What the small image has of busybox.
const APPLETS: &str = "cat dd echo head sh sleep true wc";

/// A file of the tests' own.
pub(crate) fn scratch(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("templates");
        // Templates that an earlier run has left are not those of this one.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    });
    folder.join(name)
}

pub(crate) fn kernel() -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| given::kernel(&scratch("")))
}

/// The image with Python.
pub(crate) fn python_image() -> String {
    format!("dir:{}", given::python_root().display())
}

/// A root file system of busybox alone.
pub(crate) fn small_root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = scratch("root");
        busybox::make_root(&root, APPLETS);
        root
    })
}

pub(crate) fn small_image() -> String {
    format!("dir:{}", small_root().display())
}

/// The cache: no user's, and where templates are.
pub(crate) fn cache() -> PathBuf {
    scratch("cache/minivm")
}

/// A template's folder.
pub(crate) fn folder(name: &str) -> PathBuf {
    cache().join("templates").join(name)
}

pub(crate) fn templates() -> Templates {
    Templates::new(&cache())
}

/// `minivm` with that cache.
pub(crate) fn minivm() -> Command {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    let mut command =
        Command::new(COPY.get_or_init(|| given::copy("MINIVM_TEST_BINARY", &scratch(""))));
    command.env("XDG_CACHE_HOME", scratch("cache"));
    command.env_remove("MINIVM_COLD");
    command
}

/// `minivm run` in an image, whose machine boots or not.
pub(crate) fn run(image: &str, flags: &[&str], words: &[&str]) -> Command {
    let mut command = minivm();
    command.args(["run", "--accel", "kvm", "--kernel"]);
    command.arg(kernel()).args(flags).arg(image).args(words);
    command
}

/// `minivm run` from a template.
pub(crate) fn run_from(template: &str, flags: &[&str], words: &[&str]) -> Command {
    let mut command = minivm();
    command.args(["run", "--accel", "kvm", "--template", template]);
    command.args(flags).args(words);
    command
}

/// `minivm template create`.
pub(crate) fn create(name: &str, image: &str, flags: &[&str]) -> Command {
    let mut command = minivm();
    command.args([
        "template", "create", "--quiet", "--accel", "kvm", "--kernel",
    ]);
    command.arg(kernel()).args(flags).args([name, image]);
    command
}

/// A template that is gone when its test has ended: the lab keeps all of them in memory.
pub(crate) struct Made(&'static str);

impl Made {
    /// Makes it.
    pub(crate) fn new(name: &'static str, image: &str, flags: &[&str]) -> Self {
        text_of(create(name, image, flags));
        Made(name)
    }

    /// One that is made otherwise.
    pub(crate) fn of(name: &'static str) -> Self {
        Made(name)
    }

    pub(crate) fn open(&self) -> Template {
        templates().open_named(self.0).unwrap()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // The test may have removed it.
        let _ = templates().remove(self.0);
    }
}

pub(crate) fn end_of(mut command: Command) -> Ended {
    program::run(&mut command, PATIENCE)
}

/// What a command writes that ends well and says nothing on stderr.
pub(crate) fn text_of(command: Command) -> String {
    let ended = end_of(command);
    let told = (ended.code, ended.stderr.as_str());
    assert_eq!(told, (Some(0), ""), "{}", ended.text());
    ended.text()
}

/// What `minivm run --json` says.
pub(crate) fn report_of(command: Command) -> Value {
    let ended = end_of(command);
    serde_json::from_slice(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", ended.text(), ended.stderr))
}

/// A template without an interpreter, of the small image.
pub(crate) fn small() -> Template {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| drop(text_of(create("small", &small_image(), &[]))));
    templates().open_named("small").unwrap()
}

/// Makes sure that there is a template called `python`, of a Python with nothing imported.
pub(crate) fn python() -> &'static str {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        drop(text_of(create(
            "python",
            &python_image(),
            &["--warm", "python3"],
        )))
    });
    "python"
}

/// A request for Python code, as `--code` makes one.
pub(crate) fn code(code: &str) -> Request {
    request(&["python3", "-u", "-c", code])
}

pub(crate) fn request(words: &[&str]) -> Request {
    Request {
        argv: words.iter().map(|word| word.as_bytes().to_vec()).collect(),
        hostname: "minivm".into(),
        ..Request::default()
    }
}

/// Lets a clone of a template serve a request.
pub(crate) fn serve(
    template: &Template,
    request: Request,
    stdin: Option<OwnedFd>,
    stdout: impl Write + Send + 'static,
    stderr: impl Write + Send + 'static,
) -> Report {
    let link = template
        .saved
        .as_ref()
        .unwrap()
        .resume(ResumeOptions::default())
        .unwrap();
    let session = Session {
        stdin,
        stdout: Box::new(stdout),
        stderr: Box::new(stderr),
        timeout: Some(PATIENCE),
        ..Session::new(request)
    };
    session.run(link).unwrap()
}

/// What a clone of a template says that serves a request well.
pub(crate) fn answer(template: &Template, request: Request) -> String {
    let (stdout, stderr) = (Shared::default(), Shared::default());
    let report = serve(template, request, None, stdout.clone(), stderr.clone());
    let text = |shared: &Shared| String::from_utf8(shared.bytes()).unwrap();
    assert_eq!(report.end, End::Exited(0), "{}", text(&stderr));
    assert_eq!(text(&stderr), "");
    text(&stdout)
}
