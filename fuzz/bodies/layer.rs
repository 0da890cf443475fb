//! Any bytes as two layers of an image. To be run with `-detect_leaks=0`: what a thread that has just ended still holds counts
//! as a leak otherwise.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use minivm_image::erofs::read::{Error, Reader};
use minivm_image::rootfs::{self, Compression, Limits};
use minivm_image::{Blob, Config, Image, Layer, Root};

pub(crate) fn run(data: &[u8]) {
    let layer = |bytes: &[u8]| {
        let mut file = unnamed();
        file.write_all(bytes).expect("memory can be written to");
        Layer {
            blob: Blob {
                file: Arc::new(file),
                offset: 0,
                len: bytes.len() as u64,
                name: "layer".into(),
            },
            diff_id: None,
        }
    };
    // Two layers out of one input, so that whiteouts and links find something.
    let half = data.len() / 2 / 512 * 512;
    let image = Image {
        identity: "fuzz".into(),
        config: Config::default(),
        root: Root::Layers(vec![layer(&data[..half]), layer(&data[half..])]),
    };
    let limits = Limits {
        expanded: 1 << 22,
        archive: 1 << 22,
        entries: 1000,
        names: 1 << 20,
        header: 1 << 16,
    };
    let _ = rootfs::write(&image, b"init", Compression::None, &limits, io::sink());
    let out = unnamed();
    if rootfs::write_erofs(&image, &limits, &out).is_ok() {
        let reader = Reader::open(&out).expect("it was just written");
        let walked = reader.walk(|_, _| Ok::<_, Error>(()));
        walked.expect("it was just written");
    }
}

fn unnamed() -> File {
    let path = std::env::temp_dir().join(format!("minivm-fuzz-{}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path);
    let file = file.expect("a temporary file can be made");
    let _ = std::fs::remove_file(path);
    file
}
