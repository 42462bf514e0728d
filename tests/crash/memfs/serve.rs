//! The kernel's requests, answered from the store.

use super::store::{Call, Content, Effect, Node, Store};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// How long the kernel may believe what it was told: only it changes anything here.
const TTL: Duration = Duration::from_secs(1);
/// O_DIRECT, as open(2) has it on this architecture.
const DIRECT: i32 = nix::fcntl::OFlag::O_DIRECT.bits();

pub(super) struct Server(Arc<Mutex<Store>>);

impl Server {
    pub(super) fn new(store: Arc<Mutex<Store>>) -> Self {
        Self(store)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.0)
    }

    /// Makes an entry, and answers with it.
    fn make(&self, parent: INodeNo, name: &OsStr, node: Node, reply: ReplyEntry) {
        let mut store = self.store();
        match store.add(parent.0, name, node) {
            Ok(ino) => reply.entry(&TTL, &attr(ino, &store.nodes[&ino]), Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    /// Does something after a while, in a thread of its own: others go on.
    fn later(&self, time: Duration, then: impl FnOnce(&mut Store) + Send + 'static) {
        let store = self.0.clone();
        std::thread::spawn(move || {
            std::thread::sleep(time);
            then(&mut lock(&store));
        });
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attr(ino: u64, node: &Node) -> FileAttr {
    let (kind, size) = match &node.content {
        Content::File { data, .. } => (FileType::RegularFile, data.len() as u64),
        Content::Dir(_) => (FileType::Directory, 4096),
        Content::Link(target) => (FileType::Symlink, target.as_os_str().len() as u64),
    };
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: node.mtime,
        mtime: node.mtime,
        ctime: node.ctime,
        crtime: node.ctime,
        kind,
        perm: node.perm,
        nlink: node.links,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Writes into a file; the errno if it does not fit.
fn put(store: &mut Store, ino: u64, offset: u64, bytes: &[u8]) -> Result<u32, Errno> {
    let end = offset + bytes.len() as u64;
    let size = match store.nodes.get(&ino) {
        Some(Node { content: Content::File { data, .. }, .. }) => data.len() as u64,
        _ => return Err(Errno::EBADF),
    };
    if end > size && !store.resize(ino, end) {
        return Err(Errno::ENOSPC);
    }
    let Some(node) = store.nodes.get_mut(&ino) else { return Err(Errno::EBADF) };
    node.mtime = SystemTime::now();
    node.ctime = node.mtime;
    if let Content::File { data, .. } = &mut node.content {
        data[offset as usize..end as usize].copy_from_slice(bytes);
    }
    Ok(bytes.len() as u32)
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        if self.store().flocks {
            // Else the kernel keeps these locks by itself and never asks.
            let _ = config.add_capabilities(InitFlags::FUSE_FLOCK_LOCKS);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let store = self.store();
        match store.child(parent.0, name) {
            Some(ino) => reply.entry(&TTL, &attr(ino, &store.nodes[&ino]), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.store().nodes.get(&ino.0) {
            Some(node) => reply.attr(&TTL, &attr(ino.0, node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    #[allow(clippy::too_many_arguments)]
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
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut store = self.store();
        if size.is_some_and(|size| !store.resize(ino.0, size)) {
            return reply.error(Errno::ENOSPC);
        }
        let Some(node) = store.nodes.get_mut(&ino.0) else { return reply.error(Errno::ENOENT) };
        node.perm = mode.map_or(node.perm, |mode| (mode & 0o7777) as u16);
        node.ctime = SystemTime::now();
        match mtime {
            Some(TimeOrNow::SpecificTime(time)) => node.mtime = time,
            Some(TimeOrNow::Now) => node.mtime = node.ctime,
            None => {}
        }
        reply.attr(&TTL, &attr(ino.0, node));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.store().nodes.get(&ino.0).map(|node| &node.content) {
            Some(Content::Link(target)) => reply.data(target.as_os_str().as_bytes()),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        self.make(parent, name, Node::new(Content::Dir(BTreeMap::new()), name, mode), reply);
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.make(parent, name, Node::new(Content::Link(target.to_owned()), name, 0o777), reply);
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut store = self.store();
        if store.child(parent.0, name).is_some() {
            return reply.error(Errno::EEXIST);
        }
        if let Some(entries) = store.entries(parent.0) {
            entries.insert(name.to_owned(), ino.0);
        }
        let Some(node) = store.nodes.get_mut(&ino.0) else { return reply.error(Errno::ENOENT) };
        node.links += 1;
        reply.entry(&TTL, &attr(ino.0, node), Generation(0));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.store().remove(parent.0, name) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut store = self.store();
        let ino = store.child(parent.0, name);
        let empty = ino.and_then(|ino| store.nodes.get(&ino)).map(|node| match &node.content {
            Content::Dir(entries) => entries.is_empty(),
            _ => false,
        });
        match empty {
            Some(true) => match store.remove(parent.0, name) {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno),
            },
            Some(false) => reply.error(Errno::ENOTEMPTY),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut store = self.store();
        let Some(ino) = store.child(parent.0, name) else { return reply.error(Errno::ENOENT) };
        match store.effect(Call::Rename, ino) {
            Some(Effect::Fail(errno)) => return reply.error(errno),
            Some(Effect::FailFlags(errno)) if !flags.is_empty() => return reply.error(errno),
            _ => {}
        }
        if flags.contains(RenameFlags::RENAME_NOREPLACE) && store.child(new_parent.0, new_name).is_some() {
            return reply.error(Errno::EEXIST);
        }
        let _ = store.remove(new_parent.0, new_name);
        if let Some(entries) = store.entries(parent.0) {
            entries.remove(name);
        }
        if let Some(entries) = store.entries(new_parent.0) {
            entries.insert(new_name.to_owned(), ino);
        }
        if let Some(node) = store.nodes.get_mut(&ino) {
            node.name = new_name.to_owned();
            node.ctime = SystemTime::now();
        }
        reply.ok();
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & DIRECT != 0
            && let Some(Effect::Fail(errno)) = self.store().effect(Call::OpenDirect, ino.0)
        {
            return reply.error(errno);
        }
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        let mut store = self.store();
        if let Some(Effect::Fail(errno)) = store.effect(Call::Create, parent.0) {
            return reply.error(errno);
        }
        let node = Node::new(Content::File { data: Vec::new(), synced: Vec::new() }, name, mode);
        match store.add(parent.0, name, node) {
            Ok(ino) => {
                reply.created(&TTL, &attr(ino, &store.nodes[&ino]), Generation(0), FileHandle(0), FopenFlags::empty());
            }
            Err(errno) => reply.error(errno),
        }
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
        let mut store = self.store();
        let effect = store.effect(Call::Read, ino.0);
        if let Some(Effect::Fail(errno)) = effect {
            return reply.error(errno);
        }
        let Some(Node { content: Content::File { data, .. }, .. }) = store.nodes.get(&ino.0) else {
            return reply.error(Errno::EBADF);
        };
        let size = if matches!(effect, Some(Effect::Short)) { (size / 2).max(1) } else { size };
        let start = (offset as usize).min(data.len());
        let end = (start + size as usize).min(data.len());
        match effect {
            Some(Effect::Late(time)) => {
                let bytes = data[start..end].to_vec();
                drop(store);
                self.later(time, move |_| reply.data(&bytes));
            }
            _ => reply.data(&data[start..end]),
        }
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
        let mut store = self.store();
        let answer = |result: Result<u32, Errno>, reply: ReplyWrite| match result {
            Ok(count) => reply.written(count),
            Err(errno) => reply.error(errno),
        };
        match store.effect(Call::Write, ino.0) {
            Some(Effect::Fail(errno)) => reply.error(errno),
            Some(Effect::Short) => {
                let half = (data.len() / 2).max(1);
                answer(put(&mut store, ino.0, offset, &data[..half]), reply);
            }
            Some(Effect::Late(time)) => {
                let bytes = data.to_vec();
                drop(store);
                self.later(time, move |store| answer(put(store, ino.0, offset, &bytes), reply));
            }
            _ => answer(put(&mut store, ino.0, offset, data), reply),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let mut store = self.store();
        let of_data = if datasync { store.effect(Call::DataSync, ino.0) } else { None };
        match of_data.or_else(|| store.effect(Call::Fsync, ino.0)) {
            Some(Effect::Fail(errno)) => reply.error(errno),
            Some(Effect::Lose(errno)) => {
                store.lose(ino.0);
                reply.error(errno);
            }
            Some(Effect::Late(time)) => {
                drop(store);
                self.later(time, move |store| {
                    store.sync(ino.0);
                    reply.ok();
                });
            }
            Some(Effect::Rot) => {
                store.rot(ino.0);
                reply.ok();
            }
            _ => {
                store.sync(ino.0);
                reply.ok();
            }
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let store = self.store();
        let Some(Node { content: Content::Dir(entries), .. }) = store.nodes.get(&ino.0) else {
            return reply.error(Errno::ENOTDIR);
        };
        let dots = [(OsStr::new("."), ino.0), (OsStr::new(".."), 1)];
        let all = dots.into_iter().chain(entries.iter().map(|(name, ino)| (name.as_os_str(), *ino)));
        for (at, (name, child)) in all.enumerate().skip(offset as usize) {
            let kind = store.nodes.get(&child).map_or(FileType::RegularFile, |node| attr(child, node).kind);
            if reply.add(INodeNo(child), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.store().effect(Call::SyncDir, ino.0) {
            Some(Effect::Fail(errno)) => reply.error(errno),
            _ => reply.ok(),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let store = self.store();
        let (all, used) = (store.capacity / 4096, store.used().div_ceil(4096));
        let free = all.saturating_sub(used);
        reply.statfs(all, free, free, 1 << 20, 1 << 20, 4096, 255, 4096);
    }

    fn setxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, value: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        let mut store = self.store();
        if let Some(Effect::Fail(errno)) = store.effect(Call::Xattr, ino.0) {
            return reply.error(errno);
        }
        if let Some(node) = store.nodes.get_mut(&ino.0) {
            node.xattrs.insert(name.to_owned(), value.to_vec());
        }
        reply.ok();
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let mut store = self.store();
        if let Some(Effect::Fail(errno)) = store.effect(Call::Xattr, ino.0) {
            return reply.error(errno);
        }
        match store.nodes.get(&ino.0).and_then(|node| node.xattrs.get(name)) {
            None => reply.error(Errno::ENODATA),
            Some(value) if size == 0 => reply.size(value.len() as u32),
            Some(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
            Some(value) => reply.data(value),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let store = self.store();
        let names = store.nodes.get(&ino.0).map(|node| &node.xattrs).into_iter().flat_map(BTreeMap::keys);
        let list: Vec<u8> = names.flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
        if size == 0 { reply.size(list.len() as u32) } else { reply.data(&list) }
    }

    fn setlk(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        match self.store().effect(Call::Flock, ino.0) {
            Some(Effect::Fail(errno)) => reply.error(errno),
            _ => reply.ok(),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mut store = self.store();
        if let Some(Effect::Fail(errno)) = store.effect(Call::Fallocate, ino.0) {
            return reply.error(errno);
        }
        let end = offset + length;
        if mode == 0 {
            let size = match store.nodes.get(&ino.0) {
                Some(Node { content: Content::File { data, .. }, .. }) => data.len() as u64,
                _ => return reply.error(Errno::EBADF),
            };
            return if store.resize(ino.0, end.max(size)) { reply.ok() } else { reply.error(Errno::ENOSPC) };
        }
        // The only other mode that is asked for: a hole, the size kept.
        if let Some(Node { content: Content::File { data, .. }, .. }) = store.nodes.get_mut(&ino.0) {
            let (start, end) = ((offset as usize).min(data.len()), (end as usize).min(data.len()));
            data[start..end].fill(0);
        }
        reply.ok();
    }
}
