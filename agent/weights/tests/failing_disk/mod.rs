//! A disk in memory that fails when it is told to, mounted through FUSE, which takes root and `/dev/fuse`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, TimeOrNow,
    WriteFlags,
};
use tempfile::TempDir;

/// Nothing is remembered by the kernel.
const AT_ONCE: Duration = Duration::ZERO;
const BLOCK: u32 = 4096;

/// What the disk refuses with EIO.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Writes to files on their way, once so many more bytes were taken.
    pub(crate) writes_after: Option<u64>,
    /// Reads of this byte of any file, until it is written again.
    pub(crate) reads_of: Option<u64>,
    /// Syncs of files on their way.
    pub(crate) syncs: bool,
    /// So many requests were refused.
    pub(crate) refused: u64,
}

#[derive(Debug)]
struct Node {
    parent: u64,
    name: OsString,
    attr: FileAttr,
    data: Vec<u8>,
}

#[derive(Debug, Default)]
struct Disk {
    nodes: BTreeMap<u64, Node>,
    faults: Faults,
}

impl Disk {
    fn find(&self, parent: INodeNo, name: &OsStr) -> Option<u64> {
        let here = |node: &Node| node.parent == parent.0 && node.name == name;
        self.nodes.iter().find(|(_, node)| here(node)).map(|(ino, _)| *ino)
    }

    fn make(&mut self, parent: u64, name: &OsStr, kind: FileType, mode: u32) -> FileAttr {
        let ino = self.nodes.keys().next_back().map_or(1, |last| last + 1);
        let now = SystemTime::now();
        let attr = FileAttr {
            ino: INodeNo(ino),
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm: u16::try_from(mode & 0o7777).unwrap(),
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        };
        self.nodes.insert(ino, Node { parent, name: name.to_owned(), attr, data: Vec::new() });
        attr
    }

    fn comes(&self, ino: INodeNo) -> bool {
        self.nodes[&ino.0].name.to_string_lossy().ends_with(".data")
    }

    fn refuse(&mut self) -> Errno {
        self.faults.refused += 1;
        Errno::EIO
    }

    fn resize(&mut self, ino: INodeNo, length: u64) -> &mut FileAttr {
        let node = self.nodes.get_mut(&ino.0).unwrap();
        node.data.resize(usize::try_from(length).unwrap(), 0);
        (node.attr.size, node.attr.blocks) = (length, length.div_ceil(512));
        node.attr.mtime = SystemTime::now();
        node.attr.ctime = node.attr.mtime;
        &mut node.attr
    }
}

#[derive(Debug)]
struct Mounted(Arc<Mutex<Disk>>);

impl Mounted {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let disk = self.disk();
        match disk.find(parent, name) {
            Some(ino) => reply.entry(&AT_ONCE, &disk.nodes[&ino].attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&AT_ONCE, &self.disk().nodes[&ino.0].attr);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut disk = self.disk();
        if let Some(size) = size {
            disk.resize(ino, size);
        }
        let attr = &mut disk.nodes.get_mut(&ino.0).unwrap().attr;
        attr.ctime = SystemTime::now();
        if let Some(mode) = mode {
            attr.perm = u16::try_from(mode & 0o7777).unwrap();
        }
        match mtime {
            Some(TimeOrNow::SpecificTime(time)) => attr.mtime = time,
            Some(TimeOrNow::Now) => attr.mtime = attr.ctime,
            None => {}
        }
        reply.attr(&AT_ONCE, attr);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let attr = self.disk().make(parent.0, name, FileType::Directory, mode);
        reply.entry(&AT_ONCE, &attr, Generation(0));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let attr = self.disk().make(parent.0, name, FileType::RegularFile, mode);
        reply.created(&AT_ONCE, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut disk = self.disk();
        let Some(ino) = disk.find(parent, name) else { return reply.error(Errno::ENOENT) };
        // It may be open still, so it loses its place only.
        disk.nodes.get_mut(&ino).unwrap().parent = 0;
        reply.ok();
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        as_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut disk = self.disk();
        let Some(ino) = disk.find(parent, name) else { return reply.error(Errno::ENOENT) };
        if let Some(before) = disk.find(to, as_name) {
            disk.nodes.get_mut(&before).unwrap().parent = 0;
        }
        let node = disk.nodes.get_mut(&ino).unwrap();
        (node.parent, node.name, node.attr.ctime) = (to.0, as_name.to_owned(), SystemTime::now());
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut disk = self.disk();
        let length = disk.nodes[&ino.0].data.len();
        let from = usize::try_from(offset).unwrap().min(length);
        let to = (from + size as usize).min(length);
        if disk.faults.reads_of.is_some_and(|byte| (from as u64..to as u64).contains(&byte)) {
            return reply.error(disk.refuse());
        }
        reply.data(&disk.nodes[&ino.0].data[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (mut disk, count) = (self.disk(), data.len() as u64);
        if disk.comes(ino)
            && let Some(left) = disk.faults.writes_after
        {
            let Some(left) = left.checked_sub(count) else { return reply.error(disk.refuse()) };
            disk.faults.writes_after = Some(left);
        }
        if disk.faults.reads_of.is_some_and(|byte| (offset..offset + count).contains(&byte)) {
            disk.faults.reads_of = None;
        }
        let length = disk.nodes[&ino.0].attr.size.max(offset + count);
        disk.resize(ino, length);
        let from = usize::try_from(offset).unwrap();
        disk.nodes.get_mut(&ino.0).unwrap().data[from..from + data.len()].copy_from_slice(data);
        reply.written(u32::try_from(count).unwrap());
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut disk = self.disk();
        if disk.faults.syncs && disk.comes(ino) {
            return reply.error(disk.refuse());
        }
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        // Entries are told apart by their numbers, so that one that goes in between hides no other.
        for (entry, node) in self.disk().nodes.range(offset + 1..).filter(|(_, node)| node.parent == ino.0) {
            if reply.add(INodeNo(*entry), *entry, node.attr.kind, &node.name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, BLOCK, 255, BLOCK);
    }
}

/// The disk, while it is mounted.
pub(crate) struct FailingDisk {
    disk: Arc<Mutex<Disk>>,
    session: Option<BackgroundSession>,
    home: TempDir,
}

impl FailingDisk {
    /// A disk without faults, where one can be mounted.
    pub(crate) fn mount() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a disk that fails is mounted by root alone");
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let disk = Arc::new(Mutex::new(Disk::default()));
        // The kernel calls the root 1.
        disk.lock().unwrap().make(0, OsStr::new(""), FileType::Directory, 0o700);
        let session = Session::new(Mounted(disk.clone()), home.path(), &Config::default());
        match session.and_then(Session::spawn) {
            Ok(session) => Some(Self { disk, session: Some(session), home }),
            Err(error) => {
                eprintln!("skipped: no disk that fails can be mounted here ({error})");
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.home.path()
    }

    /// What it refuses from now on.
    pub(crate) fn refuses(&self, faults: Faults) {
        self.disk.lock().unwrap().faults = faults;
    }

    /// How often it has refused since it was told to.
    pub(crate) fn refused(&self) -> u64 {
        self.disk.lock().unwrap().faults.refused
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        // Also with files open, as they are when a test fails.
        if let Err(error) = nix::mount::umount2(self.home.path(), nix::mount::MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {error}", self.home.path().display());
        }
        drop(self.session.take());
    }
}
