//! A `System.map`: a line a symbol, with address, type and name, as `nm` prints it.

use super::{Parsed, Symbol};

/// Returns the symbols, or none where the file isn't text of that form.
pub(super) fn symbols(bytes: &[u8]) -> Option<Parsed> {
    let text = str::from_utf8(bytes).ok()?;
    let symbols: Option<Vec<_>> = text.lines().map(symbol).collect();
    Some(Parsed {
        symbols: symbols?,
        build_id: None,
    })
}

fn symbol(line: &str) -> Option<Symbol> {
    let mut words = line.splitn(3, ' ');
    let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
    Some(Symbol {
        address: u64::from_str_radix(address, 16).ok()?,
        name: name.into(),
        // Text, global or local, and weak symbols, which may be either.
        is_code: matches!(kind, "T" | "t" | "W" | "w"),
    })
}
