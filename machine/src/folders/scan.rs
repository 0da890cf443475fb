//! Walks through all that is below a folder, for what the rules must know about whole trees.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::abi::Result;
use super::host::{Descriptors, Key, Kind, Listed, Stat, list, step};
use super::lock;
use super::mount::Mount;
use super::name::Name;
use super::nodes::Stop;
use super::rules::Verdict;

/// Folders in one another that a walk goes down: each is open meanwhile.
const DEPTH_MAX: usize = 256;
const READ: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// A file by device and number, as names in a listing give it.
pub(super) type Numbers = (u64, u64);

/// What a walk does with a folder that this user may not read, or that is too deep.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    Refused,
    LeftOut,
}

/// Takes the way to something from the top of a walk, its kind, and the folder that it is in.
type Visit<'a> = dyn FnMut(&[Stop], Kind, &OwnedFd) -> Result<()> + 'a;

struct Frame {
    folder: OwnedFd,
    pending: Vec<Listed>,
}

/// Calls `visit` for all that is below a folder. The key of the last stop isn't looked up.
fn walk(
    descriptors: &Descriptors,
    top: &impl AsFd,
    unreadable: Unreadable,
    visit: &mut Visit<'_>,
) -> Result<()> {
    let open = |folder: OwnedFd| -> Result<Frame> {
        let pending = list(folder.as_fd())?;
        Ok(Frame { folder, pending })
    };
    let mut route: Vec<Stop> = Vec::new();
    let mut frames = vec![open(descriptors.reopen(top, READ)?)?];
    while let Some(frame) = frames.last_mut() {
        let Some(Listed { name, kind }) = frame.pending.pop() else {
            frames.pop();
            route.pop();
            continue;
        };
        let key = Key::default();
        route.push(Stop {
            name: name.clone(),
            key,
        });
        visit(&route, kind, &frame.folder)?;
        if kind != Kind::Folder {
            route.pop();
            continue;
        }
        let fd = match step(&frame.folder, &name) {
            Ok(fd) => fd,
            // It is gone by now, or another file system's.
            Err(Errno::NOENT | Errno::XDEV) => {
                route.pop();
                continue;
            }
            // The folder above can be listed, and not entered.
            Err(Errno::ACCESS) if unreadable == Unreadable::LeftOut => {
                route.pop();
                continue;
            }
            Err(error) => return Err(error),
        };
        let key = Stat::of(&fd)?.key();
        let entered = descriptors.reopen(&fd, READ).and_then(open);
        match entered {
            Ok(frame) if frames.len() < DEPTH_MAX => {
                if let Some(last) = route.last_mut() {
                    last.key = key;
                }
                frames.push(frame);
            }
            Ok(_) if unreadable == Unreadable::Refused => return Err(Errno::BUSY),
            // Or it isn't a folder any more, or is gone.
            Ok(_) | Err(Errno::NOTDIR | Errno::NOENT | Errno::STALE) => drop(route.pop()),
            Err(Errno::ACCESS) if unreadable == Unreadable::LeftOut => drop(route.pop()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Mount {
    /// Checks that the rules have nothing to say about what is below a folder that gets another place: neither where it is, nor where it
    /// comes to be. Otherwise a guest could move protected files away and make others in their place, or get to see hidden ones.
    ///
    /// # Errors
    ///
    /// EROFS if they have; EBUSY if the tree is too deep to be looked through.
    pub(super) fn check_below(&self, folder: &impl AsFd, from: &[Stop], to: &[Stop]) -> Result<()> {
        if self.rules.is_empty() {
            return Ok(());
        }
        let mut place = Vec::new();
        walk(
            &self.descriptors,
            folder,
            Unreadable::Refused,
            &mut |below, kind, _| {
                for start in [from, to] {
                    place.clear();
                    place.extend_from_slice(start);
                    place.extend_from_slice(below);
                    if self.judge(&place, kind, true) != Verdict::Free {
                        return Err(Errno::ROFS);
                    }
                }
                Ok(())
            },
        )
    }

    /// Returns how strict the rules are about the other names of a file that has several. The first call looks all of them up.
    ///
    /// # Errors
    ///
    /// If that fails. The next call tries it again: nothing passes because this process ran out of descriptors.
    pub(super) fn judge_links(&self, stat: &Stat) -> Result<Verdict> {
        if self.rules.is_empty() || stat.links() < 2 || stat.kind() != Kind::File {
            return Ok(Verdict::Free);
        }
        let mut linked = lock(&self.linked);
        if linked.is_none() {
            *linked = Some(self.find_linked()?);
        }
        let key = stat.key();
        let verdict = linked
            .as_ref()
            .and_then(|linked| linked.get(&(key.device, key.number)));
        Ok(verdict.copied().unwrap_or(Verdict::Free))
    }

    fn find_linked(&self) -> Result<HashMap<Numbers, Verdict>> {
        let mut linked = HashMap::new();
        let top = &*self.root;
        walk(
            &self.descriptors,
            top,
            Unreadable::LeftOut,
            &mut |route, kind, folder| {
                let verdict = match kind {
                    Kind::File => self.judge(route, kind, true),
                    _ => Verdict::Free,
                };
                match route.last() {
                    Some(stop) if verdict != Verdict::Free => {
                        note(folder, &stop.name, verdict, &mut linked)
                    }
                    _ => Ok(()),
                }
            },
        )?;
        Ok(linked)
    }
}

fn note(
    folder: &OwnedFd,
    name: &Name,
    verdict: Verdict,
    linked: &mut HashMap<Numbers, Verdict>,
) -> Result<()> {
    let stat = match step(folder, name).and_then(Stat::of) {
        Ok(stat) => stat,
        // Gone, another file system's, or in a folder that can't be entered: the guest can't reach it there either.
        Err(Errno::NOENT | Errno::XDEV | Errno::ACCESS) => return Ok(()),
        Err(error) => return Err(error),
    };
    if stat.links() > 1 {
        let key = stat.key();
        let strictest = linked.entry((key.device, key.number)).or_insert(verdict);
        *strictest = verdict.max(*strictest);
    }
    Ok(())
}
