//! Landlock: the kernel's own refusal of files, TCP, sockets and signals, whatever the filters and the user would allow.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope,
};

use super::{LANDLOCK, Missing, Reach, Served};

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
    let none = None::<PathBeneath<PathFd>>;
    enforce(CompatLevel::BestEffort, AccessNet::from_all(NEWEST), none)
}

/// Leaves this thread, and those that it will start, the rights to fill a folder. No file can be read with them.
///
/// # Errors
///
/// The missing wall, as [`restrict`]'s.
pub(super) fn restrict_to_folder(folder: BorrowedFd<'_>) -> Result<(), Missing> {
    let filled = PathBeneath::new(folder, fill() | AccessFs::ReadDir);
    enforce(
        CompatLevel::BestEffort,
        AccessNet::from_all(NEWEST),
        [filled],
    )
}

/// Leaves this thread, and those that it will start, the files of its reach, and connections if that has a network.
///
/// # Errors
///
/// The missing wall, as [`restrict`]'s. The first version, which lets no file be moved between folders, is not used.
pub(super) fn restrict_to_reach(reach: &Reach) -> Result<(), Missing> {
    let network = match reach.network {
        // The resolver binds its UDP sockets, and sends from them.
        true => AccessNet::BindTcp.into(),
        false => AccessNet::from_all(NEWEST),
    };
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let empty = AccessFs::Refer | AccessFs::RemoveDir | AccessFs::Truncate;
    let filled = below(&reach.filled, read | fill() | empty);
    let rules = filled.chain(below(&reach.read, read));
    enforce(CompatLevel::SoftRequirement, network, rules)
}

/// Leaves this thread, and those that it will start, the folders and files that it serves: to read them, and to change those that may be
/// changed.
///
/// # Errors
///
/// The missing wall, as [`restrict`]'s. The first version, which lets no file be moved between folders, is not used.
pub(super) fn restrict_to_served(served: &[Served<'_>]) -> Result<(), Missing> {
    let rules = served.iter().map(|served| {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let change = fill() | AccessFs::Refer | AccessFs::RemoveDir | AccessFs::Truncate;
        let access = match served.is_writable {
            true => read | change,
            false => read,
        };
        let possible = match served.is_file {
            true => AccessFs::from_file(NEWEST),
            false => AccessFs::from_all(NEWEST),
        };
        PathBeneath::new(served.root.as_fd(), access & possible)
    });
    let none = AccessNet::from_all(NEWEST);
    enforce(CompatLevel::SoftRequirement, none, rules)
}

/// Enforces a set of rules that handles all rights to files and these to the network, and grants those of the rules. Moves between folders
/// are needed as the level says.
fn enforce<F: AsFd>(
    moves: CompatLevel,
    network: BitFlags<AccessNet>,
    rules: impl IntoIterator<Item = PathBeneath<F>>,
) -> Result<(), Missing> {
    let enforced = || {
        Ruleset::default()
            .set_compatibility(moves)
            .handle_access(AccessFs::Refer)?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(network)?
            .scope(Scope::from_all(NEWEST))?
            .create()?
            .add_rules(rules.into_iter().map(Ok::<_, RulesetError>))?
            .restrict_self()
    };
    check(&enforced().map_err(Missing::of(LANDLOCK, "landlock_restrict_self"))?)
}

/// Returns what the kernel's Landlock lacks.
fn check(status: &RestrictionStatus) -> Result<(), Missing> {
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

/// Returns the access by which a folder is filled with files, folders and links, of which a new one takes an old one's place.
fn fill() -> BitFlags<AccessFs> {
    use AccessFs::{MakeDir, MakeReg, MakeSym, RemoveFile, WriteFile};
    MakeDir | MakeReg | MakeSym | RemoveFile | WriteFile
}

/// Returns the rules that grant this access to those of the paths that are there, and to all that is below them.
fn below(
    paths: &[PathBuf],
    access: BitFlags<AccessFs>,
) -> impl Iterator<Item = PathBeneath<PathFd>> {
    paths.iter().filter_map(move |path| {
        let opened = PathFd::new(path).ok()?;
        Some(PathBeneath::new(opened, access & possible(path)))
    })
}

/// Returns the access that can be granted to what is at the path: a file has no entries.
fn possible(path: &Path) -> BitFlags<AccessFs> {
    match path.is_dir() {
        true => AccessFs::from_all(NEWEST),
        false => AccessFs::from_file(NEWEST),
    }
}
