//! Archives in cpio's format "newc", as Linux reads them.

/// Name, mode, inode, links, data.
pub type Entry = (String, u32, u32, u32, Vec<u8>);

/// Every entry of an archive as (name, mode, inode, links, data), read the way Linux reads it.
///
/// # Panics
///
/// Where it is no archive of this format.
pub fn entries(archive: &[u8]) -> Vec<Entry> {
    let field = |at: usize, index: usize| {
        let text = &archive[at + 6 + 8 * index..][..8];
        u32::from_str_radix(std::str::from_utf8(text).expect("ASCII"), 16).expect("a number")
    };
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        assert_eq!(&archive[at..at + 6], b"070701", "a header at {at}");
        let (size, name_size) = (field(at, 6) as usize, field(at, 11) as usize);
        let name = &archive[at + 110..][..name_size];
        assert_eq!(name.last(), Some(&0));
        let name = String::from_utf8(name[..name_size - 1].to_vec()).expect("UTF-8");
        let data = (at + 110 + name_size).next_multiple_of(4);
        if name == "TRAILER!!!" {
            assert_eq!(data, archive.len());
            return found;
        }
        found.push((
            name,
            field(at, 1),
            field(at, 0),
            field(at, 4),
            archive[data..data + size].to_vec(),
        ));
        at = (data + size).next_multiple_of(4);
    }
}
