//! The packages behind the lock file, as `cargo metadata` and `cargo tree` list them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::cargo;

/// Crates by which a build script compiles C or assembly.
const COMPILERS: [&str; 4] = ["cc", "cmake", "nasm-rs", "autotools"];

/// A package of the graph.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    /// The registry or repository; `None` for a package of the workspace's own.
    pub(crate) source: Option<String>,
    pub(crate) dependencies: Vec<Dependency>,
    /// The registries that it may be published to; `None` for all.
    pub(crate) publish: Option<Vec<String>>,
}

impl Package {
    /// Whether it can't be published.
    pub(crate) fn is_private(&self) -> bool {
        self.publish.as_ref().is_some_and(Vec::is_empty)
    }

    pub(crate) fn shown(&self) -> String {
        format!("{} {}", self.name, self.version)
    }
}

/// A line of a manifest's list of dependencies.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) req: String,
    pub(crate) path: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    pub(crate) id: String,
    deps: Vec<Edge>,
}

#[derive(Deserialize)]
struct Edge {
    name: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

/// All packages that are compiled for some targets, for programs and for tests.
pub(crate) struct Graph {
    pub(crate) packages: Vec<Package>,
    /// The names of those whose build scripts compile C or assembly.
    pub(crate) compile_c: BTreeSet<String>,
}

impl Graph {
    pub(crate) fn of(targets: &[String]) -> Graph {
        let mut packages = BTreeMap::new();
        let mut compile_c = BTreeSet::new();
        for target in targets {
            let printed = cargo(&[
                "metadata",
                "--all-features",
                "--format-version=1",
                "--filter-platform",
                target,
            ]);
            let Metadata {
                packages: listed,
                resolve,
            } = serde_json::from_str(&printed).unwrap();
            let with_c = resolve.nodes.iter().filter(|node| node.compiles_c());
            let with_c: BTreeSet<_> = with_c.map(|node| node.id.as_str()).collect();
            for package in listed {
                if with_c.contains(package.id.as_str()) {
                    compile_c.insert(package.name.clone());
                }
                packages.insert(package.id.clone(), package);
            }
        }
        Graph {
            packages: packages.into_values().collect(),
            compile_c,
        }
    }
}

impl Node {
    fn compiles_c(&self) -> bool {
        self.deps.iter().any(|edge| {
            let of_build = |kind: &DependencyKind| kind.kind.as_deref() == Some("build");
            COMPILERS.contains(&edge.name.as_str()) && edge.dep_kinds.iter().any(of_build)
        })
    }
}

/// The packages that are linked into the programs of `package` or make its macros, the workspace's own among them, as `NAME vVERSION`.
pub(crate) fn shipped(package: &str) -> BTreeSet<String> {
    let printed = cargo(&[
        "tree",
        "--package",
        package,
        "--edges=normal",
        "--target=x86_64-unknown-linux-gnu",
        "--prefix=none",
    ]);
    let name = |line: &str| {
        let mut words = line.split(' ');
        Some(format!("{} {}", words.next()?, words.next()?))
    };
    printed.lines().filter_map(name).collect()
}
