//! A tar archive of regular files, each with the same attributes, written in one pass.
//!
//! `tar::Builder` would write the archive's end when it is dropped, behind a layer that turned out to be another one.

use std::collections::HashSet;
use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use crate::error::Error;
use crate::rootfs::Summary;
use crate::tar_reader::BLOCK;

use super::Unsaved;
use super::content::{Checked, Content, check};

/// An archive being written.
pub(super) struct Archive<W> {
    out: W,
    /// The names that are in it.
    names: HashSet<String>,
    bytes: u64,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Archive<W> {
        Archive {
            out,
            names: HashSet::new(),
            bytes: 0,
        }
    }

    /// Writes a document.
    pub(super) fn document(&mut self, name: &str, bytes: &[u8]) -> Result<(), Unsaved> {
        if !self.names.insert(name.to_owned()) {
            return Ok(());
        }
        let written = self.member(name, bytes.len() as u64, bytes);
        written.map_err(Unsaved::Write)
    }

    /// Writes a layer, unless it is there: an image may have one several times.
    pub(super) fn layer(&mut self, name: &str, layer: &Content) -> Result<(), Unsaved> {
        if !self.names.insert(name.to_owned()) {
            return Ok(());
        }
        let mut content = Checked::new(layer.open()?);
        let written = self.member(name, layer.len, content.by_ref().take(layer.len));
        if let Some(failure) = content.failure {
            return Err(Error::reading(&layer.blob.name)(failure).into());
        }
        written.map_err(Unsaved::Write)?;
        Ok(check(&layer.blob, &layer.digest, &content.hash.finish())?)
    }

    fn member(&mut self, name: &str, len: u64, mut content: impl Read) -> io::Result<()> {
        self.out.write_all(header(name, len)?.as_bytes())?;
        let copied = io::copy(&mut content, &mut self.out)?;
        let rest = len.next_multiple_of(BLOCK as u64) - len;
        io::copy(&mut io::repeat(0).take(rest), &mut self.out)?;
        self.bytes += BLOCK as u64 + copied + rest;
        Ok(())
    }

    /// Writes the archive's end.
    pub(super) fn finish(mut self) -> Result<Summary, Unsaved> {
        let end = [0; 2 * BLOCK];
        let written = self.out.write_all(&end).and_then(|()| self.out.flush());
        written.map_err(Unsaved::Write)?;
        Ok(Summary {
            files: self.names.len() as u64,
            bytes: self.bytes + end.len() as u64,
        })
    }
}

/// Returns the header of a file (pax(1), "ustar Interchange Format"; GNU's, for lengths of 8 GiB and more).
fn header(name: &str, len: u64) -> io::Result<Header> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(len);
    header.set_cksum();
    Ok(header)
}
