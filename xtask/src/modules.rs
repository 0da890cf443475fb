//! Modules of a packaged kernel: those that are wanted, and all that they depend on, in the order in which they have to be loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::process::{output, shown};

/// Begins, in a module, the names of those that it depends on. Its information is a row of such texts with a zero after each.
const DEPENDS: &[u8] = b"\0depends=";

/// Fills `folder` with the modules `wanted`, and all that they depend on, from the tree `/lib/modules/VERSION` of a package. They are
/// unpacked, and named so that the order of their names is the one in which they have to be loaded.
pub(crate) fn keep(tree: &Path, wanted: &[&str], folder: &Path) -> Result<()> {
    let tree = Tree::read(tree)?;
    let mut ordered = Vec::new();
    for name in wanted {
        add(name, &|name| tree.module(name), &mut ordered)?;
    }
    for (number, (name, bytes)) in ordered.iter().enumerate() {
        let file = folder.join(format!("{number:02}-{name}.ko"));
        fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Adds a module to those that are loaded, after all that it depends on. `module` returns its bytes, or `None` where the kernel has it
/// built in.
fn add(
    name: &str,
    module: &dyn Fn(&str) -> Result<Option<Vec<u8>>>,
    ordered: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let name = plain(name);
    if ordered.iter().any(|(there, _)| *there == name) {
        return Ok(());
    }
    let Some(bytes) = module(&name)? else {
        return Ok(());
    };
    for dependency in
        dependencies(&bytes).with_context(|| format!("the module {name} can't be read"))?
    {
        add(&dependency, module, ordered)?;
    }
    ordered.push((name, bytes));
    Ok(())
}

/// The names of the modules that a module depends on.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let at = module
        .windows(DEPENDS.len())
        .position(|window| window == DEPENDS)
        .context("it doesn't say what it depends on")?;
    let text = &module[at + DEPENDS.len()..];
    let end = text.iter().position(|byte| *byte == 0);
    let names = std::str::from_utf8(&text[..end.unwrap_or(text.len())])
        .context("what it depends on is not text")?;
    let names = names.split(',').filter(|name| !name.is_empty());
    Ok(names.map(str::to_owned).collect())
}

/// A module's name as the kernel has it: names of files may have `-` for `_`.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the module in a file: `kvm_amd` in `kvm-amd.ko.xz`.
fn module_name(file: &str) -> Option<String> {
    let (name, packed) = file.split_once(".ko")?;
    ["", ".xz", ".zst", ".gz"]
        .contains(&packed)
        .then(|| plain(name))
}

/// The modules of a kernel.
struct Tree {
    folder: PathBuf,
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl Tree {
    fn read(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        find(folder, &mut files).with_context(|| format!("cannot read {}", folder.display()))?;
        let list = folder.join("modules.builtin");
        let list =
            fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        let built_in = list
            .lines()
            .filter_map(|path| module_name(path.rsplit('/').next()?));
        Ok(Self {
            folder: folder.to_owned(),
            files,
            built_in: built_in.collect(),
        })
    }

    /// A module's bytes; `None` where the kernel has it built in.
    fn module(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self.files.get(name) {
            Some(file) => Ok(Some(unpacked(file)?)),
            None if self.built_in.contains(name) => Ok(None),
            None => Err(anyhow!("{} has no module {name}", self.folder.display())),
        }
    }
}

/// Adds all modules below a folder.
fn find(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), files)?;
        } else if let Some(name) = module_name(&entry.file_name().to_string_lossy()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// A module's bytes, which distributions compress in several ways.
fn unpacked(file: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(|end| end.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(file).with_context(|| format!("cannot read {}", file.display())),
    };
    let mut command = Command::new(program);
    let output = output(command.args(["--decompress", "--stdout"]).arg(file))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}",
            shown(&command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::capture;

    /// A module, as far as it is read here.
    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF…\0license=GPL\0depends={depends}\0name=…\0").into_bytes()
    }

    #[test]
    fn modules_come_after_what_they_depend_on_and_once() {
        let tree = |name: &str| match name {
            "kvm_amd" => Ok(Some(module("kvm,ccp"))),
            "kvm" => Ok(Some(module("irqbypass"))),
            "ccp" | "irqbypass" => Ok(Some(module(""))),
            "virtio" => Ok(None),
            "virtio_console" => Ok(Some(module("virtio,kvm"))),
            _ => bail!("no {name}"),
        };
        let mut ordered = Vec::new();
        for name in ["kvm-amd", "virtio_console"] {
            add(name, &tree, &mut ordered).unwrap();
        }
        let names: Vec<_> = ordered.iter().map(|(name, _)| name.as_str()).collect();
        let expected = ["irqbypass", "kvm", "ccp", "kvm_amd", "virtio_console"];
        assert_eq!(names, expected);
        assert!(add("9p", &tree, &mut ordered).is_err());
    }

    #[test]
    fn a_tree_gives_its_modules_unpacked_and_knows_what_is_built_in() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("tree/kernel/virt");
        fs::create_dir_all(&kernel).unwrap();
        let list = "kernel/drivers/virtio/virtio.ko\n";
        fs::write(folder.path().join("tree/modules.builtin"), list).unwrap();
        fs::write(kernel.join("irqbypass.ko"), module("")).unwrap();
        for (name, depends, program) in [
            ("kvm.ko", "irqbypass", "xz"),
            ("kvm-amd.ko", "kvm,virtio", "zstd"),
        ] {
            let file = kernel.join(name);
            fs::write(&file, module(depends)).unwrap();
            let mut packed = Command::new(program);
            capture(packed.args(["--quiet", "--keep"]).arg(&file)).unwrap();
            fs::remove_file(file).unwrap();
        }
        let kept = folder.path().join("kept");
        fs::create_dir(&kept).unwrap();
        let tree = folder.path().join("tree");
        keep(&tree, &["virtio", "kvm-amd"], &kept).unwrap();
        let mut names: Vec<_> = fs::read_dir(&kept)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["00-irqbypass.ko", "01-kvm.ko", "02-kvm_amd.ko"]);
        let unpacked = fs::read(kept.join("02-kvm_amd.ko")).unwrap();
        assert_eq!(unpacked, module("kvm,virtio"));
        let error = keep(&tree, &["9p"], &kept).unwrap_err().to_string();
        assert!(error.ends_with("has no module 9p"), "{error}");
    }

    #[test]
    fn a_module_that_names_no_dependencies_is_an_error() {
        assert!(dependencies(b"not a module").is_err());
        assert_eq!(dependencies(b"\0depends=kvm").unwrap(), ["kvm"]);
    }
}
