//! Any bytes as an archive of images.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use minivm_image::{Options, Source, Store, Unwatched};

fuzz_target!(|data: &[u8]| {
    let folder = std::env::temp_dir().join(format!("minivm-fuzz-archive-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a temporary folder can be made");
    let file = folder.join("archive");
    fs::write(&file, data).expect("a temporary file can be written");
    let store = Store::new(folder.join("store"));
    let options = Options {
        largest: 1 << 22,
        ..Options::default()
    };
    let sources = [
        Source::DockerArchive {
            file: file.clone(),
            reference: None,
        },
        Source::OciArchive { file, tag: None },
    ];
    for source in sources {
        let _ = minivm_image::open(&source, &store, &options, &Unwatched);
    }
});
