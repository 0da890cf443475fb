//! Landlock: the kernel's own refusal of files, TCP, sockets and signals, whatever the filters and the user would allow.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{LANDLOCK, Missing, Reach};

/// The newest rights that the crate knows. A kernel without them enforces the others.
const NEWEST: ABI = ABI::V10;
/// The first version with signals and abstract sockets, after files and TCP.
const WHOLE: ABI = ABI::V6;

/// Takes all of Landlock's rights from this thread, and from those that it will start.
///
/// # Errors
///
/// The missing wall, where the kernel has no Landlock or not all of [`WHOLE`].
pub(super) fn restrict() -> Result<(), Missing> {
    check(take_all())
}

/// Leaves this thread, and those that it will start, the files of its reach, and connections if that has a network.
///
/// # Errors
///
/// The missing wall, where the kernel has no Landlock or not all of [`WHOLE`]. The first version, which lets no file be moved between
/// folders, is not used.
pub(super) fn restrict_to(reach: &Reach) -> Result<(), Missing> {
    check(leave(reach))
}

fn check(restricted: Result<RestrictionStatus, RulesetError>) -> Result<(), Missing> {
    let status = restricted.map_err(Missing::of(LANDLOCK, "landlock_restrict_self"))?;
    let why = match status.landlock {
        LandlockStatus::NotImplemented => "this kernel is built without it".into(),
        LandlockStatus::NotEnabled => "this kernel has not enabled it (its lsm= parameter)".into(),
        LandlockStatus::Available { .. } if status.ruleset == RulesetStatus::NotEnforced => {
            "its version in this kernel lets no file be moved between folders".into()
        }
        LandlockStatus::Available { effective_abi, .. } if effective_abi < WHOLE => {
            let version = effective_abi as i32;
            format!("version {version} bounds files, and not all of TCP, sockets and signals")
        }
        LandlockStatus::Available { .. } => return Ok(()),
    };
    Err(Missing::new(LANDLOCK, why))
}

/// Enforces a set of rules that handles all rights, and has no rule that grants one.
fn take_all() -> Result<RestrictionStatus, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()
}

/// Enforces a set of rules that handles all rights, and grants those of the reach.
fn leave(reach: &Reach) -> Result<RestrictionStatus, RulesetError> {
    let network = match reach.network {
        // The resolver binds its UDP sockets, and sends from them.
        true => AccessNet::BindTcp.into(),
        false => AccessNet::from_all(NEWEST),
    };
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(network)?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    rules = grant(rules, &reach.filled, read | fill())?;
    rules = grant(rules, &reach.read, read)?;
    rules.restrict_self()
}

/// Returns the access by which a folder is filled with files, folders and links, and emptied.
fn fill() -> BitFlags<AccessFs> {
    use AccessFs::{MakeDir, MakeReg, MakeSym, Refer, RemoveDir, RemoveFile, Truncate, WriteFile};
    MakeDir | MakeReg | MakeSym | Refer | RemoveDir | RemoveFile | Truncate | WriteFile
}

/// Grants this access to those of the paths that are there, and to all that is below them.
fn grant(
    mut rules: RulesetCreated,
    paths: &[PathBuf],
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    for path in paths {
        let Ok(opened) = PathFd::new(path) else {
            continue;
        };
        rules = rules.add_rule(PathBeneath::new(opened, access & possible(path)))?;
    }
    Ok(rules)
}

/// Returns the access that can be granted to what is at the path: a file has no entries.
fn possible(path: &Path) -> BitFlags<AccessFs> {
    match path.is_dir() {
        true => AccessFs::from_all(NEWEST),
        false => AccessFs::from_file(NEWEST),
    }
}
