//! Fields of headers as a file system has them: paths, owners, times, devices. What Linux doesn't allow is refused.

use tar::{EntryType, Header};

use super::entry::{Attributes, Entry, Kind, NAME_MAX, PATH_MAX, Xattrs};
use super::error::Fault;
use crate::tar_reader::{self, Member, Records, Time, number};
use minivm_guest::newc::Node;

/// The limits of Linux for an extended attribute (`include/uapi/linux/limits.h`).
const XATTR_NAME_MAX: usize = 255;
const XATTR_SIZE_MAX: usize = 65536;

/// Returns the member as a file system has it.
pub(super) fn entry(member: &Member) -> Result<Entry, Fault> {
    let kind = match member.kind {
        tar_reader::Kind::Folder => Kind::Folder,
        tar_reader::Kind::Symlink => Kind::Symlink(target(&member.link)?),
        tar_reader::Kind::HardLink => Kind::HardLink(normal(&member.link)?),
        tar_reader::Kind::Node => Kind::Node(node(&member.header)?),
        tar_reader::Kind::File => Kind::File { size: member.size },
        tar_reader::Kind::Other(kind) => {
            let kind = char::from(kind);
            return Err(Fault::Kind { kind });
        }
    };
    Ok(Entry {
        path: normal(&member.name)?,
        attributes: attributes(&member.header, &member.records)?,
        xattrs: xattrs(&member.records)?,
        kind,
    })
}

/// Returns a path without empty parts and `.`; refused if it leads upwards or is too long for Linux.
fn normal(name: &[u8]) -> Result<Box<[u8]>, Fault> {
    if name.contains(&0) {
        return Err(Fault::Nul);
    }
    let mut path = Vec::with_capacity(name.len());
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(Fault::Upwards),
            part if part.len() > NAME_MAX => return Err(Fault::TooLong),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    if path.len() >= PATH_MAX {
        return Err(Fault::TooLong);
    }
    Ok(path.into())
}

/// Checks a symbolic link's target, which is kept byte for byte.
fn target(link: &[u8]) -> Result<Box<[u8]>, Fault> {
    match link {
        b"" => Err(Fault::NoName),
        link if link.contains(&0) => Err(Fault::Nul),
        link if link.len() >= PATH_MAX => Err(Fault::TooLong),
        link => Ok(link.into()),
    }
}

/// Returns the extended attributes, if Linux allows them.
fn xattrs(records: &Records) -> Result<Xattrs, Fault> {
    let checked = records.xattrs.iter().map(|(name, value)| {
        let sound = !name.is_empty() && name.len() <= XATTR_NAME_MAX && !name.contains(&0);
        if !sound || value.len() > XATTR_SIZE_MAX {
            let name = name.escape_ascii().to_string();
            return Err(Fault::Xattr { name });
        }
        Ok((name.as_slice().into(), value.as_slice().into()))
    });
    checked.collect()
}

fn attributes(header: &Header, records: &Records) -> Result<Attributes, Fault> {
    let old = header.as_old();
    let numbered = |bytes, field| number::field(bytes).ok_or(Fault::Number { field });
    let owner = |record: Option<i128>, bytes, field| {
        let id = record.map_or_else(|| numbered(bytes, field), Ok)?;
        // Linux takes the highest number for "leave it as it is".
        let fits = u32::try_from(id).ok().filter(|&id| id != u32::MAX);
        fits.ok_or(Fault::Owner { id })
    };
    let mode = numbered(&old.mode, "mode")? & 0o7777;
    Ok(Attributes {
        permissions: u32::try_from(mode).unwrap_or(0),
        uid: owner(records.uid, &old.uid, "user")?,
        gid: owner(records.gid, &old.gid, "group")?,
        mtime: match records.mtime {
            Some(time) => time,
            None => Time::at(numbered(&old.mtime, "time")?),
        },
    })
}

/// Returns a device, which is two numbers here, or a pipe; nothing is looked up or opened.
fn node(header: &Header) -> Result<Node, Fault> {
    let numbers: (&[u8], &[u8]) = match (header.as_gnu(), header.as_ustar()) {
        (Some(gnu), _) => (&gnu.dev_major, &gnu.dev_minor),
        (_, Some(ustar)) => (&ustar.dev_major, &ustar.dev_minor),
        _ => (&[], &[]),
    };
    let numbered = |bytes, field| {
        let number = number::field(bytes).and_then(|number| u32::try_from(number).ok());
        number.ok_or(Fault::Number { field })
    };
    let device = || {
        Ok((
            numbered(numbers.0, "major number")?,
            numbered(numbers.1, "minor number")?,
        ))
    };
    match header.entry_type() {
        EntryType::Char => device().map(|(major, minor)| Node::CharDevice { major, minor }),
        EntryType::Block => device().map(|(major, minor)| Node::BlockDevice { major, minor }),
        _ => Ok(Node::Fifo),
    }
}
