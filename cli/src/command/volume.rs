//! Folders of this host's that are shared with the guest, as users of containers ask for them: `-v SRC:DST[:ro|rw]`.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue};
use minivm_machine::folders::{Access, Folder, Volume};
use minivm_sandbox::Capability;

use super::guest_path::is_below_root;
use super::units;

/// Folders of the guest that its kernel makes. What lies in them is the guest's own, too.
const OF_THE_KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Flags of `run` that share folders.
#[derive(Args)]
pub(super) struct VolumeArgs {
    /// Share a folder or file, live: `rw` (the default) changes it here, `ro` can't change it
    #[arg(short, long, value_name = "SRC:DST[:ro|rw]", value_parser = OsStringValueParser::new().try_map(share), help_heading = "Files")]
    volume: Vec<Share>,
    /// Hide what a pattern as in .gitignore matches, in all that is shared
    #[arg(
        long,
        value_name = "PATTERN",
        requires = "volume",
        help_heading = "Files",
        hide_short_help = true
    )]
    hide: Vec<String>,
    /// Keep the guest from changing what a pattern as in .gitignore matches, in all that is shared
    #[arg(
        long,
        value_name = "PATTERN",
        requires = "volume",
        help_heading = "Files",
        hide_short_help = true
    )]
    protect: Vec<String>,
    /// Let the guest change, too, what this host runs later: git's hooks and settings, and those of editors and agents
    #[arg(
        long,
        requires = "volume",
        help_heading = "Files",
        hide_short_help = true
    )]
    no_protect: bool,
    /// How much each shared folder may grow [default: 4G]
    #[arg(long, value_name = "SIZE", value_parser = units::bytes, requires = "volume", help_heading = "Files", hide_short_help = true)]
    volume_quota: Option<u64>,
}

/// One folder or file to share.
#[derive(Clone, Debug, PartialEq)]
struct Share {
    source: PathBuf,
    at: PathBuf,
    access: Access,
}

impl VolumeArgs {
    /// The flags that were given, each with what a backend must be able to do to honour it.
    pub(super) fn given(&self) -> impl Iterator<Item = (bool, &'static str, Capability)> {
        use Capability::{FolderRules, Folders};
        [
            (!self.volume.is_empty(), "--volume", Folders),
            (!self.hide.is_empty(), "--hide", FolderRules),
            (!self.protect.is_empty(), "--protect", FolderRules),
            (self.volume_quota.is_some(), "--volume-quota", FolderRules),
        ]
        .into_iter()
    }

    /// Returns whether something that the guest may change is protected because nothing else was said.
    pub(super) fn protects_by_default(&self) -> bool {
        let is_writable = |share: &Share| share.access == Access::ReadWrite;
        !self.no_protect && self.volume.iter().any(is_writable)
    }

    /// Returns the folders, each checked, in the order in which they are mounted: one that lies in another one comes after it.
    pub(super) fn volumes(&self) -> anyhow::Result<Vec<Volume>> {
        let volumes = self.volume.iter().map(|share| self.volume(share));
        let mut volumes: Vec<_> = volumes.collect::<Result<_, _>>()?;
        let mut places = BTreeSet::new();
        if let Some(twice) = volumes.iter().find(|volume| !places.insert(&volume.at)) {
            bail!(
                "-v names {} twice: share one of them there",
                twice.at.display()
            );
        }
        volumes.sort_by_key(|volume| volume.at.components().count());
        Ok(volumes)
    }

    fn volume(&self, share: &Share) -> anyhow::Result<Volume> {
        let source = &share.source;
        let absolute = std::path::absolute(source);
        let source = absolute.with_context(|| format!("cannot share {}", source.display()))?;
        let mut folder = Folder::new(source, share.access);
        if self.no_protect {
            folder.protect.clear();
        }
        folder.protect.extend(self.protect.iter().cloned());
        folder.hide.clone_from(&self.hide);
        if let Some(growth) = self.volume_quota {
            folder.limits.growth = growth;
        }
        folder.check()?;
        let at = share.at.clone();
        Ok(Volume { folder, at })
    }
}

/// Parses a folder to share: the colons are looked for from the right, so that `SRC` may have any, and `DST` none.
fn share(text: OsString) -> Result<Share, String> {
    let expected = "expected SRC:DST[:ro|rw], with an absolute DST without `..`, and not `/`; behind `run`, --verbose logs to stderr";
    let (rest, last) = split(text.as_bytes()).ok_or(expected)?;
    let (source, at, mode) = match split(rest) {
        Some((source, at)) if !last.starts_with(b"/") => (source, at, Some(last)),
        _ => (rest, last, None),
    };
    let at = Path::new(OsStr::from_bytes(at));
    if source.is_empty() || !is_below_root(at) {
        return Err(expected.into());
    }
    if let Some(own) = OF_THE_KERNEL.iter().find(|own| at.starts_with(own)) {
        return Err(format!("{own} is the guest's own: choose another DST"));
    }
    let access = match mode {
        None | Some(b"rw") => Access::ReadWrite,
        Some(b"ro") => Access::ReadOnly,
        Some(mode) => {
            let mode = String::from_utf8_lossy(mode);
            return Err(format!("{mode:?} is not a mode: ro or rw"));
        }
    };
    Ok(Share {
        source: OsStr::from_bytes(source).into(),
        at: at.components().collect(),
        access,
    })
}

/// Splits at the last colon.
fn split(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = text.iter().rposition(|&byte| byte == b':')?;
    Some((&text[..colon], &text[colon + 1..]))
}

/// Adds a tip to the error of a `-v` without a value, which is `--verbose` of other commands.
pub(super) fn with_tip(mut error: clap::Error) -> clap::Error {
    let is_volume = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) => flag.starts_with("--volume "),
        _ => false,
    };
    if is_volume {
        let tip = "behind `run`, `--verbose` logs to stderr";
        let tips = ContextValue::StyledStrs(vec![tip.into()]);
        error.insert(ContextKind::Suggested, tips);
    }
    error
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use clap::Parser;
    use minivm_machine::folders::PROTECTED;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: VolumeArgs,
    }

    fn volumes(line: &[&str]) -> anyhow::Result<Vec<Volume>> {
        let line = Line::try_parse_from(["test"].iter().chain(line)).unwrap();
        line.args.volumes()
    }

    #[test]
    fn colons_are_looked_for_from_the_right() {
        for (text, source, at, access) in [
            ("a:/b", "a", "/b", Access::ReadWrite),
            (".:/b:rw", ".", "/b", Access::ReadWrite),
            ("/a:/b:ro", "/a", "/b", Access::ReadOnly),
            ("a:b:/c/./d/", "a:b", "/c/d", Access::ReadWrite),
            ("a:/b:/c:ro", "a:/b", "/c", Access::ReadOnly),
            ("ro:/rw:ro", "ro", "/rw", Access::ReadOnly),
        ] {
            let (source, at) = (source.into(), at.into());
            let expected = Share { source, at, access };
            assert_eq!(share(text.into()), Ok(expected), "{text}");
        }
        let odd = OsString::from_vec(b"\xff:/\xff:ro".to_vec());
        assert_eq!(share(odd).unwrap().source.as_os_str().as_bytes(), b"\xff");
    }

    #[test]
    fn what_is_not_a_folder_and_a_place_is_refused() {
        for wrong in [
            "",
            ":",
            "::",
            "a",
            "a:",
            ":/b",
            "a:b",
            "a:/",
            "a://",
            "a:/..",
            "a:/b/..",
            "a:./b",
            "a::ro",
            "a:b:ro",
            ":/b:ro",
            "python:3-alpine",
            "v",
        ] {
            let error = share(wrong.into()).unwrap_err();
            assert!(error.contains("--verbose"), "{wrong}: {error}");
        }
        for (wrong, said) in [
            ("a:/b:cow", "\"cow\" is not a mode: ro or rw"),
            ("a:/b:", "\"\" is not a mode: ro or rw"),
            ("a:/b:RO", "\"RO\" is not a mode: ro or rw"),
            ("a:/b:ro:rw", "expected SRC:DST"),
            ("a:/proc", "/proc is the guest's own"),
            ("a:/dev/shm:ro", "/dev is the guest's own"),
            ("a:/sys/.", "/sys is the guest's own"),
        ] {
            let error = share(wrong.into()).unwrap_err();
            assert!(error.starts_with(said), "{wrong}: {error}");
        }
        assert!(share("a:/device".into()).is_ok());
    }

    #[test]
    fn what_the_host_runs_later_is_protected_unless_that_is_refused() {
        let protected = |line: &[&str]| volumes(line).unwrap().remove(0).folder.protect;
        assert_eq!(protected(&["-v", ".:/b"]), PROTECTED);
        assert!(protected(&["-v", ".:/b:ro"]).is_empty());
        assert!(protected(&["-v", ".:/b", "--no-protect"]).is_empty());
        let own = ["-v", ".:/b", "--no-protect", "--protect", "*.key"];
        assert_eq!(protected(&own), ["*.key"]);
        let both = protected(&["-v", ".:/b", "--protect", "*.key"]);
        assert_eq!(both.len(), PROTECTED.len() + 1);
    }

    #[test]
    fn patterns_and_the_quota_are_for_all_folders() {
        let line = [
            "-v",
            ".:/b",
            "-v",
            "/tmp:/a:ro",
            "--hide",
            ".env",
            "--volume-quota",
            "1M",
        ];
        for Volume { folder, .. } in volumes(&line).unwrap() {
            assert!(folder.source.is_absolute());
            assert_eq!(folder.hide, [".env"]);
            assert_eq!(folder.limits.growth, 1 << 20);
        }
        let growth = volumes(&["-v", ".:/b"]).unwrap()[0].folder.limits.growth;
        assert_eq!(growth, 4 << 30);
    }

    #[test]
    fn a_place_in_another_folders_is_mounted_after_it() {
        let line = ["-v", ".:/a/b/c", "-v", ".:/z", "-v", ".:/a"];
        let places: Vec<_> = volumes(&line).unwrap();
        let places: Vec<_> = places.iter().map(|volume| volume.at.as_path()).collect();
        assert_eq!(places, ["/z", "/a", "/a/b/c"].map(Path::new));
    }

    #[test]
    fn what_cannot_be_shared_is_named() {
        for (line, said) in [
            (&["-v", "/nowhere:/b"][..], "cannot share /nowhere: No such"),
            (
                &["-v", "/dev/null:/b"],
                "cannot share /dev/null: it is a device",
            ),
            (&["-v", ".:/b", "-v", "/:/b/"], "-v names /b twice"),
            (&["-v", ".:/b", "--hide", ""], "cannot share "),
            (&["-v", ".:/b", "--protect", "#"], "cannot share "),
            (&["-v", ".:/b:ro", "--protect", "[z-a]"], "cannot share "),
        ] {
            let error = format!("{:#}", volumes(line).unwrap_err());
            assert!(error.starts_with(said), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        for without in [
            "--hide=a",
            "--protect=a",
            "--no-protect",
            "--volume-quota=1",
        ] {
            assert!(
                Line::try_parse_from(["test", without]).is_err(),
                "{without}"
            );
        }
    }
}
