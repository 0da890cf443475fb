//! Landlock: the kernel's own refusal of files, TCP, sockets and signals, whatever the filters and the user would allow.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};

use super::{LANDLOCK, Missing};

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
    let status = take_all().map_err(Missing::of(LANDLOCK, "landlock_restrict_self"))?;
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
