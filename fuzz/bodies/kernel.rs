//! Any bytes as a kernel's file, with an initramfs beside it. Where it can be loaded, a machine is made of it if there is a `/dev/kvm`.

use std::fs;
use std::path::PathBuf;

use minivm_vmm::{Builder, Config, Error, Kernel, MEMORY_MIN};

pub(crate) fn run(data: &[u8]) {
    let (kernel, initramfs) = (
        file("kernel", data),
        file("initramfs", &data[..data.len() / 2]),
    );
    let config = Config {
        memory: MEMORY_MIN,
        cmdline: "quiet".into(),
        initramfs: Some(initramfs.clone()),
        ..Config::new(Kernel::File(kernel.clone()))
    };
    if let Err(error) = Builder::new(config).build() {
        let line = error.to_string();
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(!matches!(error, Error::Exit { .. }), "nothing runs");
    }
    for file in [kernel, initramfs] {
        fs::remove_file(file).expect("it is there");
    }
}

fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let name = format!("minivm-fuzz-{name}-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    fs::write(&path, bytes).expect("a temporary file can be written");
    path
}
