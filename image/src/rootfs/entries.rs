//! A layer's entries, read from its tar archive.

use std::ops::Range;

use super::entry::Entry;
use super::error::Error;
use super::fields;
use super::limits::Limits;
use crate::tar_reader::{Data, Input, TarReader};

/// A layer's entries being read.
pub(super) struct Entries<'a, R> {
    reader: TarReader<R>,
    layer: &'a str,
}

impl<'a, R: Input> Entries<'a, R> {
    pub(super) fn new(input: R, layer: &'a str, limits: &Limits) -> Entries<'a, R> {
        Entries {
            reader: TarReader::new(input, limits.header),
            layer,
        }
    }

    /// The next entry; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Error> {
        let layer = self.layer;
        let member = self.reader.next();
        let Some(member) = member.map_err(|error| Error::archive(layer, error))? else {
            return Ok(None);
        };
        let entry = fields::entry(&member);
        let entry = entry.map_err(|fault| Error::entry(layer, &member.name, fault))?;
        Ok(Some(entry))
    }

    /// The data of the current entry, which has to be a file.
    pub(super) fn data(&mut self) -> Data<'_, R> {
        self.reader.data()
    }

    /// The places of its data.
    pub(super) fn pieces(&self) -> &[Range<u64>] {
        self.reader.pieces()
    }

    /// Returns the input, to read what follows the last entry, and whether that was marked as the last.
    pub(super) fn finish(self) -> (R, bool) {
        self.reader.finish()
    }
}
