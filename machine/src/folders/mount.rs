//! One folder as a guest has it mounted: its nodes, what is open, its rules, and the way from a request to its operation.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::io::Errno;

use super::abi::{MAJOR, MINOR, Out, Owner, Request, Result, init, opcode};
use super::growth::Growth;
use super::host::{Descriptors, Key, Kind, Stat, step};
use super::nodes::{Nodes, Route, Stop};
use super::opens::Opens;
use super::rules::{Rules, Verdict};
use super::scan::Numbers;
use super::{Access, DATA_MAX, lock};

/// Pages of a request's data, of 4 KiB.
const PAGES_MAX: u16 = 32;

/// The locks are taken in the order of the fields.
pub(super) struct Mount {
    pub(super) descriptors: Arc<Descriptors>,
    pub(super) root: Arc<OwnedFd>,
    pub(super) owner: Owner,
    pub(super) access: Access,
    pub(super) rules: Rules,
    started: AtomicBool,
    /// Held for writing by requests that change what a name leads to, and for reading by those that go by names.
    names: RwLock<()>,
    /// Files that have several names, one of them hidden or protected.
    pub(super) linked: Mutex<Option<HashMap<Numbers, Verdict>>>,
    pub(super) nodes: Mutex<Nodes>,
    pub(super) opens: Mutex<Opens>,
    pub(super) growth: Growth,
    /// Where the guest has made repositories.
    pub(super) repositories: Mutex<Vec<PathBuf>>,
}

/// What a node was found to be: a descriptor for nothing but further steps, or an open file's.
pub(super) enum Held {
    Step(Arc<OwnedFd>),
    Open(Arc<super::opens::Open>),
}

impl std::os::fd::AsFd for Held {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Held::Step(fd) => fd.as_fd(),
            Held::Open(open) => open.fd.as_fd(),
        }
    }
}

/// A folder that a name is in.
pub(super) struct Parent {
    pub(super) node: u64,
    pub(super) held: Held,
    pub(super) route: Route,
}

impl Mount {
    pub(super) fn new(
        descriptors: Arc<Descriptors>,
        root: OwnedFd,
        owner: Owner,
        access: Access,
        rules: Rules,
        limits: &super::Limits,
    ) -> Result<Self> {
        let nodes = Nodes::new(&Stat::of(&root)?, limits.nodes);
        Ok(Mount {
            descriptors,
            root: Arc::new(root),
            owner,
            access,
            rules,
            started: AtomicBool::new(false),
            names: RwLock::new(()),
            linked: Mutex::new(None),
            nodes: Mutex::new(nodes),
            opens: Mutex::new(Opens::new(limits.open)),
            growth: Growth::new(limits.growth),
            repositories: Mutex::default(),
        })
    }

    /// Serves a request, and appends its results.
    pub(super) fn serve(&self, request: Request<'_>, out: &mut Out<'_>) -> Result<()> {
        let Request {
            opcode,
            node,
            mut args,
            ..
        } = request;
        if opcode == opcode::INIT {
            return self.init(args, out);
        }
        if !self.started.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        match opcode {
            opcode::LOOKUP => self.lookup(node, args, out),
            opcode::GETATTR => self.getattr(node, args, out),
            opcode::SETATTR => self.setattr(node, args, out),
            opcode::READLINK => self.readlink(node, out),
            opcode::ACCESS => self.access(node, args),
            opcode::STATFS => self.statfs(out),
            opcode::SYMLINK => self.symlink(node, args, out),
            opcode::MKNOD => self.mknod(node, args, out),
            opcode::MKDIR => self.mkdir(node, args, out),
            opcode::CREATE => self.create(node, args, out),
            opcode::LINK => self.link(node, args, out),
            opcode::UNLINK => self.remove(node, args, false),
            opcode::RMDIR => self.remove(node, args, true),
            opcode::RENAME => {
                let folder = args.u64()?;
                self.rename(node, folder, 0, args)
            }
            opcode::RENAME2 => {
                let folder = args.u64()?;
                let flags = args.u32()?;
                args.skip(4)?;
                self.rename(node, folder, flags, args)
            }
            opcode::OPEN => self.open(node, args, out),
            opcode::READ => self.read(node, args, out),
            opcode::WRITE => self.write(node, args, out),
            opcode::FSYNC => self.fsync(node, args, false),
            opcode::FALLOCATE => self.fallocate(node, args),
            opcode::LSEEK => self.lseek(node, args, out),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(args),
            opcode::OPENDIR => self.opendir(node, out),
            opcode::READDIR => self.readdir(node, args, false, out),
            opcode::READDIRPLUS => self.readdir(node, args, true, out),
            opcode::FSYNCDIR => self.fsync(node, args, true),
            opcode::DESTROY => self.destroy(),
            _ => Err(Errno::NOSYS),
        }
    }

    /// Agrees on the protocol (`struct fuse_init_in`, `struct fuse_init_out`).
    ///
    /// Writes go through to the host at once, so that both sides see one file. What a page cache holds is dropped where the host has
    /// changed a file. The kernel sends truncation with the opening, and leaves the removal of set-ID bits to this server.
    fn init(&self, mut args: super::abi::Args<'_>, out: &mut Out<'_>) -> Result<()> {
        const WANTED: u32 = init::ASYNC_READ
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::AUTO_INVAL_DATA
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES
            | init::HANDLE_KILLPRIV_V2;
        let (major, minor) = (args.u32()?, args.u32()?);
        let readahead = args.u32()?;
        let flags = args.u32()?;
        if major != MAJOR {
            return Err(Errno::PROTO);
        }
        out.u32(MAJOR);
        out.u32(MINOR.min(minor));
        out.u32(readahead);
        out.u32(flags & WANTED);
        out.u16(64); // max_background
        out.u16(48); // congestion_threshold
        out.u32(DATA_MAX);
        out.u32(1); // time_gran, in ns
        out.u16(PAGES_MAX);
        out.zeros(2 + 4 + 4 + 24); // map_alignment, flags2, max_stack_depth
        self.started.store(true, Ordering::Release);
        Ok(())
    }

    /// Sets to whom this user's files belong in the guest, unless it has mounted the folder.
    pub(super) fn set_owner(&self, owner: (u32, u32)) {
        if !self.started.load(Ordering::Acquire) {
            self.owner.set_guest(owner);
        }
    }

    fn destroy(&self) -> Result<()> {
        self.started.store(false, Ordering::Release);
        let _names = self.change_names();
        lock(&self.nodes).clear();
        lock(&self.opens).clear();
        Ok(())
    }

    /// Holds names still while they are gone by.
    pub(super) fn keep_names(&self) -> RwLockReadGuard<'_, ()> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps others from going by names while they change.
    pub(super) fn change_names(&self) -> RwLockWriteGuard<'_, ()> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a node by its names, from the root down.
    ///
    /// # Errors
    ///
    /// ESTALE if it has another place now, or none.
    pub(super) fn find(&self, node: u64) -> Result<(Held, Stat)> {
        let (key, routes) = {
            let nodes = lock(&self.nodes);
            (nodes.key(node)?, nodes.routes(node)?)
        };
        for route in routes {
            match self.walk(&route) {
                Ok((fd, stat)) if stat.key() == key => return Ok((Held::Step(fd), stat)),
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::STALE)
    }

    /// Finds a node that may have lost its names while it is open.
    pub(super) fn find_open(&self, node: u64) -> Result<(Held, Stat)> {
        let open = lock(&self.nodes).open(node);
        match open {
            Some(open) => {
                let stat = Stat::of(&open.fd)?;
                Ok((Held::Open(open), stat))
            }
            None => self.find(node),
        }
    }

    /// Finds a folder, to make a step from it. Other kinds are ENOTDIR.
    pub(super) fn find_folder(&self, node: u64) -> Result<Parent> {
        let (held, stat) = self.find(node)?;
        if stat.kind() != Kind::Folder {
            return Err(Errno::NOTDIR);
        }
        let route = lock(&self.nodes).route(node).ok_or(Errno::STALE)?;
        Ok(Parent { node, held, route })
    }

    fn walk(&self, route: &[Stop]) -> Result<(Arc<OwnedFd>, Stat)> {
        let mut fd = Arc::clone(&self.root);
        for stop in route {
            fd = Arc::new(step(&*fd, &stop.name)?);
        }
        let stat = Stat::of(&*fd)?;
        Ok((fd, stat))
    }

    pub(super) fn judge(&self, route: &[Stop], kind: Kind, exists: bool) -> Verdict {
        let made = |key: &Key| self.growth.is_made(key);
        self.rules.judge(route, kind, exists, &made)
    }

    /// Judges a node by all names that are known of it, and those of a file with several.
    pub(super) fn judge_node(&self, node: u64, stat: &Stat) -> Result<Verdict> {
        if self.rules.is_empty() {
            return Ok(Verdict::Free);
        }
        let mut verdict = self.judge_links(stat)?;
        let routes = lock(&self.nodes).routes(node)?;
        for route in routes {
            verdict = verdict.max(self.judge(&route, stat.kind(), true));
        }
        Ok(verdict)
    }

    /// Checks that a node may be used, or changed.
    ///
    /// # Errors
    ///
    /// ENOENT for what is hidden, EROFS for a change of what can only be read.
    pub(super) fn check(&self, node: u64, stat: &Stat, changes: bool) -> Result<()> {
        self.allow(self.judge_node(node, stat)?, changes)
    }

    pub(super) fn allow(&self, verdict: Verdict, changes: bool) -> Result<()> {
        match verdict {
            Verdict::Hidden => Err(Errno::NOENT),
            _ if changes && self.access == Access::ReadOnly => Err(Errno::ROFS),
            Verdict::Protected if changes => Err(Errno::ROFS),
            _ => Ok(()),
        }
    }
}
