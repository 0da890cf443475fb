//! The nodes: what the guest's kernel has looked up, and by which names it is reached.
//!
//! A node holds no descriptor. It is a file's [`Key`] and its names in folders that are nodes themselves; each use walks down from the
//! root, and takes what it finds only if the key is the same. So a guest can know a million files and this process has none of them
//! open, a folder that the host moves out isn't followed there, and a file that the host has replaced is ESTALE, for which the guest's
//! kernel looks the name up anew.

use std::collections::HashMap;
use std::sync::Arc;

use rustix::io::Errno;

use super::abi::{ROOT, Result};
use super::host::{Key, Kind, Stat, Version};
use super::name::Name;
use super::opens::Open;

/// Names that are remembered of one file: with more, the oldest are forgotten. What is reached by another one then needs a new lookup.
const NAMES_MAX: usize = 32;
/// Folders that may be in one another.
pub(super) const DEPTH_MAX: usize = 1024;

/// One name on the way from the root, and what it is expected to lead to.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    pub(super) name: Name,
    pub(super) key: Key,
}

/// A way from the root down.
pub(super) type Route = Vec<Stop>;

struct Node {
    key: Key,
    kind: Kind,
    /// How often the guest says it has looked it up, and not forgotten it.
    lookups: u64,
    /// Its names, each with the node of its folder; the last is the newest.
    names: Vec<(u64, Name)>,
    /// What the guest's kernel was told of it, as long as it holds that for true.
    told: Option<Version>,
    /// The open files of it, which reach it when it has no name any more.
    open: Vec<Arc<Open>>,
}

pub(super) struct Nodes {
    nodes: HashMap<u64, Node>,
    by_key: HashMap<Key, u64>,
    next: u64,
    max: usize,
}

impl Nodes {
    pub(super) fn new(root: &Stat, max: usize) -> Self {
        let mut nodes = Nodes {
            nodes: HashMap::new(),
            by_key: HashMap::new(),
            next: ROOT,
            max,
        };
        nodes.insert(root);
        nodes
    }

    fn insert(&mut self, stat: &Stat) -> u64 {
        let id = self.next;
        self.next += 1;
        let node = Node {
            key: stat.key(),
            kind: stat.kind(),
            lookups: 0,
            names: Vec::new(),
            told: None,
            open: Vec::new(),
        };
        self.by_key.insert(node.key, id);
        self.nodes.insert(id, node);
        id
    }

    fn get(&self, id: u64) -> Result<&Node> {
        self.nodes.get(&id).ok_or(Errno::STALE)
    }

    /// Returns the node of what a lookup has found, which counts.
    ///
    /// # Errors
    ///
    /// ENFILE if there are too many nodes.
    pub(super) fn found(&mut self, folder: u64, name: &Name, stat: &Stat) -> Result<u64> {
        let id = match self.by_key.get(&stat.key()) {
            Some(&id) => id,
            None if self.nodes.len() >= self.max => return Err(Errno::NFILE),
            None => self.insert(stat),
        };
        if let Some(node) = self.nodes.get_mut(&id).filter(|_| id != ROOT) {
            node.lookups = node.lookups.saturating_add(1);
            node.kind = stat.kind();
            node.told = Some(stat.version());
            let has_one_name = node.kind == Kind::Folder || stat.links() < 2;
            node.add(folder, name, has_one_name);
        }
        Ok(id)
    }

    /// Takes lookups back. What isn't known by then any more is gone; a guest that counts wrong loses its own nodes.
    pub(super) fn forget(&mut self, id: u64, lookups: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|_| id != ROOT) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 {
            self.by_key.remove(&node.key);
            self.nodes.remove(&id);
        }
    }

    /// Notes what the guest's kernel is told of a file; `None` after a change of its own, for which it asks anew.
    pub(super) fn tell(&mut self, id: u64, version: Option<Version>) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.told = version;
        }
    }

    /// Returns whether the guest's kernel holds for true what a file isn't any more, and forgets what it was told.
    pub(super) fn has_changed(&mut self, id: u64, version: Version) -> bool {
        let node = self.nodes.get_mut(&id);
        let told = node.and_then(|node| node.told.take_if(|told| *told != version));
        told.is_some()
    }

    pub(super) fn clear(&mut self) {
        self.nodes.retain(|&id, _| id == ROOT);
        self.by_key.retain(|_, &mut id| id == ROOT);
    }

    pub(super) fn key(&self, id: u64) -> Result<Key> {
        Ok(self.get(id)?.key)
    }

    /// Returns the ways to a node, the newest first: none if its names are gone.
    ///
    /// # Errors
    ///
    /// ESTALE if it isn't known.
    pub(super) fn routes(&self, id: u64) -> Result<Vec<Route>> {
        let node = self.get(id)?;
        if id == ROOT {
            return Ok(vec![Route::new()]);
        }
        let names = node.names.iter().rev();
        let routes = names.filter_map(|(folder, name)| {
            let mut route = self.route(*folder)?;
            route.push(Stop {
                name: name.clone(),
                key: node.key,
            });
            Some(route)
        });
        Ok(routes.collect())
    }

    /// Returns the way to a folder, which has one name.
    pub(super) fn route(&self, mut folder: u64) -> Option<Route> {
        let mut route = Route::new();
        while folder != ROOT {
            let node = self.nodes.get(&folder)?;
            let (parent, name) = node.names.last()?;
            route.push(Stop {
                name: name.clone(),
                key: node.key,
            });
            folder = *parent;
            if route.len() > DEPTH_MAX {
                return None;
            }
        }
        route.reverse();
        Some(route)
    }

    /// Takes a name from what had it.
    pub(super) fn unname(&mut self, key: &Key, folder: u64, name: &Name) {
        if let Some(node) = self.by_key.get(key).and_then(|id| self.nodes.get_mut(id)) {
            node.names
                .retain(|(at, known)| (*at, known) != (folder, name));
        }
    }

    /// Gives a name to a node that is known.
    pub(super) fn name(&mut self, key: &Key, folder: u64, name: &Name) {
        if let Some(node) = self.by_key.get(key).and_then(|id| self.nodes.get_mut(id)) {
            node.add(folder, name, node.kind == Kind::Folder);
        }
    }

    /// Adds an open file to its node.
    pub(super) fn opened(&mut self, open: &Arc<Open>) {
        if let Some(node) = self.nodes.get_mut(&open.node) {
            node.open.push(Arc::clone(open));
        }
    }

    pub(super) fn closed(&mut self, open: &Arc<Open>) {
        if let Some(node) = self.nodes.get_mut(&open.node) {
            node.open.retain(|other| !Arc::ptr_eq(other, open));
        }
    }

    /// Returns an open file of a node.
    pub(super) fn open(&self, id: u64) -> Option<Arc<Open>> {
        self.nodes.get(&id)?.open.first().map(Arc::clone)
    }
}

impl Node {
    fn add(&mut self, folder: u64, name: &Name, alone: bool) {
        if alone && self.names.len() == 1 && self.names[0] == (folder, name.clone()) {
            return;
        }
        self.names
            .retain(|(at, known)| !alone && (*at, known) != (folder, name));
        if self.names.len() == NAMES_MAX {
            self.names.remove(0);
        }
        if self.names.is_empty() {
            self.names.reserve_exact(1);
        }
        self.names.push((folder, name.clone()));
    }
}
