//! The coding agent's root file system: Python, git and pytest, from Debian's packages.

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::{Cache, key};
use crate::{debian, debian_python};

/// What comes to Python and a shell. Git's other dependencies are for what it isn't asked to do here: https, Perl scripts.
const PACKAGES: [&str; 7] = [
    "git",
    "libpcre2-8-0",
    "python3-attr",
    "python3-iniconfig",
    "python3-packaging",
    "python3-pluggy",
    "python3-pytest",
];

/// Change this when the recipe changes.
const RECIPE: &str = "coding 1";

/// The root folder, made if it isn't there, and what was done.
pub(crate) fn ensure(cache: &Cache) -> Result<(PathBuf, String)> {
    let names = PACKAGES.map(str::to_owned).to_vec();
    let mut packages = debian_python::packages(cache)?;
    packages.extend(debian::pinned(cache, RECIPE, || Ok(names.clone()))?);
    let key = key([RECIPE]
        .into_iter()
        .chain(packages.iter().map(String::as_str)));
    let there = cache.folder("coding").join(&key).join("rootfs");
    if there.is_dir() {
        return Ok((there, "already there".to_owned()));
    }
    cache.make("coding", &key, |folder| {
        let root = folder.join("rootfs");
        std::fs::create_dir(&root)?;
        for name in ["proc", "sys", "dev", "tmp", "root", "run"] {
            std::fs::create_dir_all(root.join(name))?;
        }
        debian_python::fill(&packages, &root)
    })?;
    Ok((
        there,
        format!("made from {} Debian packages", packages.len()),
    ))
}
