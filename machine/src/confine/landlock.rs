//! Landlock: the kernel's own refusal of files, TCP, sockets and signals, whatever the filters and the user would allow.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope,
};

use super::{LANDLOCK, Missing};

/// The newest rights that the crate knows. A kernel without them enforces the others.
const NEWEST: ABI = ABI::V10;
/// The first version with signals and abstract sockets, after files and TCP.
const WHOLE: ABI = ABI::V6;

/// Takes all of Landlock's rights from this thread, and from those that it will start; but for those to fill `folder`, if there is one.
///
/// # Errors
///
/// The missing wall, where the kernel has no Landlock or not all of [`WHOLE`].
pub(super) fn restrict(folder: Option<BorrowedFd<'_>>) -> Result<(), Missing> {
    check(take_all(folder))
}

fn check(restricted: Result<RestrictionStatus, RulesetError>) -> Result<(), Missing> {
    let status = restricted.map_err(Missing::of(LANDLOCK, "landlock_restrict_self"))?;
    let why = match status.landlock {
        LandlockStatus::NotImplemented => "this kernel is built without it".into(),
        LandlockStatus::NotEnabled => "this kernel has not enabled it (its lsm= parameter)".into(),
        LandlockStatus::Available { effective_abi, .. } if effective_abi < WHOLE => {
            let version = effective_abi as i32;
            format!("version {version} bounds files, and not all of TCP, sockets and signals")
        }
        _ if status.ruleset == RulesetStatus::NotEnforced => {
            "the kernel does not enforce it".into()
        }
        LandlockStatus::Available { .. } => return Ok(()),
    };
    Err(Missing::new(LANDLOCK, why))
}

/// Enforces a set of rules that handles all rights, and grants none but those to fill the folder.
fn take_all(folder: Option<BorrowedFd<'_>>) -> Result<RestrictionStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    if let Some(folder) = folder {
        rules = rules.add_rule(PathBeneath::new(folder, to_fill()))?;
    }
    rules.restrict_self()
}

/// Returns the rights to fill a folder: for new files, folders and links, and what makes way for them. They are none to read a file.
fn to_fill() -> BitFlags<AccessFs> {
    let entries = AccessFs::MakeReg | AccessFs::MakeDir | AccessFs::MakeSym | AccessFs::RemoveFile;
    entries | AccessFs::ReadDir | AccessFs::WriteFile
}
