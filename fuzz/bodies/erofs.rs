//! Any bytes as an EROFS image: its superblock, and what is from block 1 on. Its checksum is made right, since a fuzzer can't do that.

use std::io::{self, Read};

use minivm_image::erofs::read::{Content, Error, Reader};
use minivm_image::erofs::seal;

/// The place of the superblock, its length, and the length of a block.
const PLACE: usize = 1024;
const LEN: usize = 128;
const BLOCK: usize = 4096;

pub(crate) fn run(data: &[u8]) {
    let image = &*image(data);
    let Ok(reader) = Reader::open(image) else {
        return;
    };
    let mut files = 0;
    let _ = reader.walk(|path, inode| {
        assert!(path.len() < 4096);
        files += 1;
        // A folder's names take more bytes than this.
        assert!(files <= image.len());
        if let Content::File(place) = &inode.content {
            let mut start = reader.data(place).take(1 << 16);
            let read = io::copy(&mut start, &mut io::sink())?;
            assert_eq!(read, place.size.min(1 << 16));
        }
        Ok::<_, Error>(())
    });
}

fn image(data: &[u8]) -> Vec<u8> {
    let (superblock, rest) = data.split_at(data.len().min(LEN));
    let mut image = vec![0; BLOCK];
    image[PLACE..PLACE + superblock.len()].copy_from_slice(superblock);
    image.extend_from_slice(rest);
    image.resize(image.len().next_multiple_of(BLOCK), 0);
    seal(&mut image);
    image
}
