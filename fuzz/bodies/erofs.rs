//! Any bytes as an EROFS image. Its checksum is made right, since a fuzzer can't do that.

use std::io::{self, Read};

use minivm_image::erofs::read::{Content, Error, Reader};
use minivm_image::erofs::seal;

pub(crate) fn run(data: &[u8]) {
    let mut image = data.to_vec();
    seal(&mut image);
    let image = &*image;
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
