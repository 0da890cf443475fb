//! Folders of snapshots, for tests of the monitor by itself: without the lock and the checks of minivm's own.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// Has `save` write a snapshot into a new state file and a new memory file, which has this name in the folder, and puts it in the place of
/// one that may be there.
///
/// # Errors
///
/// That of `save`.
///
/// # Panics
///
/// If the folder can't be changed.
pub fn save_in<E>(
    folder: &Path,
    save: impl FnOnce(File, File, String) -> Result<(), E>,
) -> Result<(), E> {
    static SAVED: AtomicU32 = AtomicU32::new(0);
    let number = SAVED.fetch_add(1, Ordering::Relaxed);
    let name = format!("memory-{:08x}{number:08x}", std::process::id());
    let (state, memory) = (folder.join(format!("state.{number}")), folder.join(&name));
    fs::create_dir_all(folder).expect("the folder can be made");
    let create = |path: &Path, mode| {
        let mut options = File::options();
        options.write(true).create_new(true).mode(mode).open(path)
    };
    let new = (
        create(&state, 0o600).expect("the state file is new"),
        create(&memory, 0o400).expect("the memory file is new"),
    );
    if let Err(error) = save(new.0, new.1, name.clone()) {
        let _ = (fs::remove_file(state), fs::remove_file(memory));
        return Err(error);
    }
    fs::rename(state, folder.join("state")).expect("a file can be renamed");
    for entry in fs::read_dir(folder)
        .expect("the folder can be read")
        .flatten()
    {
        let other = entry.file_name();
        if other.to_string_lossy().starts_with("memory-") && *other != *name {
            // Another thread may have removed it.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}
