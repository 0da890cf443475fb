//! Debian packages, unpacked without installing them and without root: apt reads lists of its own in a temporary folder, checks the
//! signature of the archive and with it the package's digest, and `dpkg-deb` unpacks it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use minivm_image::io_error::failed;
use minivm_image::publish::Folder;

use super::{Error, lock};

const RUNSC: &str = "runsc";
/// Where a package has it.
const PROGRAM: &str = "usr/bin/runsc";
/// What the package is unpacked to, in the folder in which all is done.
const UNPACKED: &str = "unpacked";
/// Suites with a `runsc` that has the platform systrap and works: bookworm's is too old, and sid's panics.
const SUITES: [&str; 2] = ["bookworm-backports", "trixie"];
const ARCHIVE: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const BY_HAND: &str = "https://gvisor.dev/docs/user_guide/install/ tells how to install it by hand";

/// Returns the newest `runsc` that was fetched, if there is one.
pub fn runsc(cache: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder(cache)).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("runsc-"))
        .map(|entry| entry.path().join(PROGRAM))
        .filter(|program| program.is_file())
        .collect();
    found.sort();
    found.pop()
}

/// Fetches gVisor's `runsc`, unless it is there already; returns where it is. `tell` gets a line for each step that takes time.
///
/// # Errors
///
/// Where apt isn't there, Debian's archive can't be reached, or there is no room.
pub fn install_runsc(cache: &Path, tell: &mut dyn FnMut(&str)) -> Result<PathBuf, Error> {
    if let Some(there) = runsc(cache) {
        return Ok(there);
    }
    let folder = folder(cache);
    let entry = Folder::new(folder.join(RUNSC));
    let lock = lock(&entry, || {
        tell("waiting for another minivm that installs runsc");
    })?;
    if let Some(there) = runsc(cache) {
        return Ok(there);
    }
    let partial = entry.begin(&lock)?;
    let version = install(partial.path(), tell)?;
    let target = folder.join(format!("{RUNSC}-{version}"));
    partial.publish_part(UNPACKED, &target)?;
    Ok(target.join(PROGRAM))
}

fn folder(cache: &Path) -> PathBuf {
    cache.join("assets")
}

/// Fetches and unpacks it in the folder `partial`; returns its version.
fn install(partial: &Path, tell: &mut dyn FnMut(&str)) -> Result<String, Error> {
    if !Path::new(KEYRING).is_file() {
        return Err(Error::NoTool {
            what: RUNSC,
            program: "debian-archive-keyring",
            hint: "`sudo apt-get install debian-archive-keyring` installs it",
        });
    }
    let mut refused = None;
    for suite in SUITES {
        tell(&format!("fetching runsc from Debian's {suite}"));
        match download(partial, suite) {
            Ok(package) => return unpack(partial, &package),
            Err(error @ Error::Fetch { .. }) => refused = refused.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    Err(refused.expect("there are suites"))
}

/// Fetches the package of one suite; returns its file.
fn download(partial: &Path, suite: &str) -> Result<PathBuf, Error> {
    let place = partial.join(suite);
    for below in ["sources", "lists", "cache", "package"] {
        let below = place.join(below);
        fs::create_dir_all(&below).map_err(failed("create", &below))?;
    }
    let sources = format!(
        "Types: deb\nURIs: {ARCHIVE}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n"
    );
    let file = place.join("sources/debian.sources");
    fs::write(&file, sources).map_err(failed("write", &file))?;
    said_no(apt(&place, &["update"])?, suite)?;
    said_no(apt(&place, &["download", RUNSC])?, suite)?;
    let folder = place.join("package");
    let entries = fs::read_dir(&folder).map_err(failed("read", &folder))?;
    let package = entries.flatten().map(|entry| entry.path()).next();
    package.ok_or_else(|| refusal(suite, "apt-get downloaded nothing"))
}

/// Runs apt-get, which must not see the system's lists; returns its complaint, if it has one.
fn apt(place: &Path, arguments: &[&str]) -> Result<Option<String>, Error> {
    let mut command = Command::new("apt-get");
    command.env("LC_ALL", "C").args(["--quiet", "--yes"]);
    let options = [
        ("Dir::Etc::SourceList", "/dev/null".into()),
        ("Dir::Etc::SourceParts", place.join("sources")),
        ("Dir::State::Lists", place.join("lists")),
        ("Dir::Cache", place.join("cache")),
    ];
    for (name, value) in options {
        command.arg("-o").arg(format!("{name}={}", value.display()));
    }
    for option in [
        // Its own user for downloads can't get into our folder.
        "APT::Sandbox::User=root",
        "Acquire::Languages=none",
        "Acquire::http::Timeout=30",
        "Acquire::Retries=2",
        // Half a list is no list.
        "APT::Update::Error-Mode=any",
    ] {
        command.args(["-o", option]);
    }
    command.args(arguments).current_dir(place.join("package"));
    run(
        command,
        "apt-get",
        "without apt, install runsc by hand: see https://gvisor.dev",
    )
}

/// Runs a program; returns its complaint, if it has one.
fn run(
    mut command: Command,
    program: &'static str,
    hint: &'static str,
) -> Result<Option<String>, Error> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|_| Error::NoTool {
        what: RUNSC,
        program,
        hint,
    })?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let errors = said.lines().find(|line| line.starts_with("E: "));
    let line = errors.or_else(|| said.lines().rfind(|line| !line.is_empty()));
    let line = line.unwrap_or("it was killed").trim_start_matches("E: ");
    Ok(Some(format!("{program}: {line}")))
}

fn said_no(complaint: Option<String>, suite: &str) -> Result<(), Error> {
    match complaint {
        Some(complaint) => Err(refusal(suite, &complaint)),
        None => Ok(()),
    }
}

fn refusal(suite: &str, why: &str) -> Error {
    Error::Fetch {
        what: RUNSC,
        from: format!("Debian's {suite}"),
        why: why.trim_end_matches('.').to_owned(),
        hint: BY_HAND,
    }
}

fn unpack(partial: &Path, package: &Path) -> Result<String, Error> {
    let unpacked = partial.join(UNPACKED);
    let mut command = Command::new("dpkg-deb");
    command.arg("--extract").arg(package).arg(&unpacked);
    let hint = "`sudo apt-get install dpkg` installs it";
    said_no(run(command, "dpkg-deb", hint)?, "archive")?;
    if !unpacked.join(PROGRAM).is_file() {
        return Err(refusal("archive", "the package has no /usr/bin/runsc"));
    }
    Ok(version(package))
}

/// The version in a package's file name, `NAME_VERSION_ARCHITECTURE.deb`, where apt writes a colon as `%3a`.
fn version(package: &Path) -> String {
    let name = package.file_name().unwrap_or_default().to_string_lossy();
    name.split('_').nth(1).unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_was_fetched_is_found() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(runsc(cache.path()), None);
        for name in [
            "runsc-0.0~20240729.0-4",
            "runsc-0.0~20250101.0-1",
            "runsc.partial",
        ] {
            let folder = cache.path().join("assets").join(name).join("usr/bin");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("runsc"), "").unwrap();
        }
        fs::create_dir(cache.path().join("assets/runsc-9")).unwrap();
        let found = runsc(cache.path()).unwrap();
        assert!(
            found.to_string_lossy().contains("runsc-0.0~2025"),
            "{found:?}"
        );
        assert_eq!(
            install_runsc(cache.path(), &mut |_| panic!()).unwrap(),
            found
        );
    }

    #[test]
    fn the_version_is_in_the_name() {
        let name = "/x/runsc_0.0~20240729.0-4~bpo12+2_amd64.deb";
        assert_eq!(version(Path::new(name)), "0.0~20240729.0-4~bpo12+2");
        assert_eq!(version(Path::new("x")), "unknown");
    }

    #[test]
    fn a_complaint_is_one_line() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            run(command, "apt-get", "").unwrap()
        };
        assert_eq!(shell("echo E: no; exit 0"), None);
        let said = shell("echo W: hm >&2; echo E: Unable to locate package runsc >&2; exit 100");
        assert_eq!(&*said.unwrap(), "apt-get: Unable to locate package runsc");
        assert_eq!(&*shell("exit 1").unwrap(), "apt-get: it was killed");
        let error = run(Command::new("/nowhere"), "apt-get", "do").unwrap_err();
        assert!(
            error.to_string().ends_with("apt-get is not installed; do"),
            "{error}"
        );
    }
}
