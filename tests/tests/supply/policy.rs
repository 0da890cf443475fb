//! The rules of `deny.toml`, as cargo-deny understands them.
//!
//! cargo-deny itself takes minutes to build, so a test holds the lock file against the same rules without it. A rule that isn't known here is
//! an error, so that the two can't drift apart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

use crate::graph::{Graph, Package};
use crate::root;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    graph: GraphRules,
    /// For cargo-deny alone: they need a database.
    #[serde(rename = "advisories")]
    _advisories: toml::Table,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct GraphRules {
    targets: Vec<String>,
    all_features: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Licenses {
    allow: Vec<String>,
    include_dev: bool,
    private: Private,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Private {
    ignore: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    wildcards: Level,
    allow_wildcard_paths: bool,
    multiple_versions: Level,
    multiple_versions_include_dev: bool,
    deny: Vec<Crate>,
    skip: Vec<Crate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    unknown_registry: Level,
    unknown_git: Level,
    allow_registry: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Crate {
    /// `NAME`, or `NAME@VERSION`.
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

/// What a rule's breach is. The weaker levels of cargo-deny's aren't used.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Deny,
}

impl Policy {
    fn read() -> Policy {
        let policy: Policy =
            toml::from_str(&fs::read_to_string(root().join("deny.toml")).unwrap()).unwrap();
        // What the checks below take for granted.
        let Level::Deny = policy.bans.wildcards;
        let Level::Deny = policy.bans.multiple_versions;
        let (Level::Deny, Level::Deny) = (
            &policy.sources.unknown_registry,
            &policy.sources.unknown_git,
        );
        assert!(policy.graph.all_features && policy.licenses.include_dev);
        assert!(policy.licenses.private.ignore && policy.bans.allow_wildcard_paths);
        assert!(policy.bans.multiple_versions_include_dev);
        policy
    }

    /// All breaches of the rules, each in a line.
    fn breaches(&self, packages: &[Package]) -> Vec<String> {
        let each = packages.iter().flat_map(|package| {
            [
                self.licence(package),
                self.source(package),
                self.banned(package),
                wildcard(package),
            ]
        });
        let mut breaches: Vec<String> = each.flatten().collect();
        breaches.extend(self.versions(packages));
        breaches
    }

    fn licence(&self, package: &Package) -> Option<String> {
        if package.is_private() {
            return None;
        }
        let allowed = self.licenses.allow.iter();
        let allowed: Vec<_> = allowed.map(|name| Licensee::parse(name).unwrap()).collect();
        let licence = package.license.as_deref().unwrap_or_default();
        let is_allowed = Expression::parse_mode(licence, ParseMode::LAX).is_ok_and(|expression| {
            expression.evaluate(|wanted| allowed.iter().any(|one| one.satisfies(wanted)))
        });
        (!is_allowed).then(|| format!("{}: licence {licence:?}", package.shown()))
    }

    fn source(&self, package: &Package) -> Option<String> {
        let source = package.source.as_deref()?;
        let registry = source.strip_prefix("registry+");
        let is_allowed = registry.is_some_and(|registry| {
            let mut allowed = self.sources.allow_registry.iter();
            allowed.any(|one| one == registry)
        });
        (!is_allowed).then(|| format!("{}: source {source}", package.shown()))
    }

    fn banned(&self, package: &Package) -> Option<String> {
        let mut banned = self.bans.deny.iter();
        let banned = banned.find(|one| one.name == package.name)?;
        Some(format!("{}: banned, {}", package.shown(), banned.reason))
    }

    /// Names of which several versions are left beside those that are listed, and entries of the list without a use.
    fn versions(&self, packages: &[Package]) -> Vec<String> {
        let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for package in packages {
            let of_name = versions.entry(&package.name).or_default();
            of_name.insert(&package.version);
        }
        let mut breaches = Vec::new();
        for Crate { name: entry, .. } in &self.bans.skip {
            let (name, version) = entry.split_once('@').unwrap_or((entry, ""));
            let of_name = versions.get_mut(name);
            if !of_name.is_some_and(|all| all.len() > 1 && all.remove(version)) {
                breaches.push(format!("{entry}: listed in `skip` without a use"));
            }
        }
        for (name, versions) in versions {
            if versions.len() > 1 {
                breaches.push(format!("{name}: several versions: {versions:?}"));
            }
        }
        breaches
    }
}

fn wildcard(package: &Package) -> Option<String> {
    let mut dependencies = package.dependencies.iter();
    let any = dependencies.find(|one| one.req == "*" && one.path.is_none())?;
    Some(format!("{}: any version of {}", package.shown(), any.name))
}

#[test]
fn the_lock_file_keeps_the_rules() {
    let policy = Policy::read();
    let graph = Graph::of(&policy.graph.targets);
    assert!(graph.packages.len() > 100, "{}", graph.packages.len());
    let breaches = policy.breaches(&graph.packages);
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

/// A package of the registry's that keeps all rules.
fn good(name: &str, version: &str) -> Package {
    Package {
        name: name.into(),
        version: version.into(),
        license: Some("MIT OR GPL-3.0".into()),
        source: Some("registry+https://github.com/rust-lang/crates.io-index".into()),
        ..Package::default()
    }
}

#[test]
fn each_breach_is_found() {
    let mut policy = Policy::read();
    policy.bans.skip.retain(|one| one.name == "syn@2.0.119");
    let breaches = |package: Package| {
        let versions = ["2.0.119", "3.0.10"].map(|version| good("syn", version));
        let packages = [&versions[..], &[good("a", "1.0.0"), package]].concat();
        policy.breaches(&packages)
    };
    assert_eq!(breaches(good("b", "1.0.0")), [""; 0]);
    type Spoil<'a> = &'a dyn Fn(&mut Package);
    let cases: [(&str, Spoil); 10] = [
        ("b 1.0.0: licence \"GPL-3.0\"", &|it| {
            it.license = Some("GPL-3.0".into());
        }),
        ("b 1.0.0: licence \"MIT AND GPL-3.0\"", &|it| {
            it.license = Some("MIT AND GPL-3.0".into());
        }),
        ("b 1.0.0: licence \"\"", &|it| it.license = None),
        ("b 1.0.0: licence \"my own\"", &|it| {
            it.license = Some("my own".into());
        }),
        ("b 1.0.0: source registry+https://example.com", &|it| {
            it.source = Some("registry+https://example.com".into());
        }),
        ("b 1.0.0: source git+https://example.com/b", &|it| {
            it.source = Some("git+https://example.com/b".into());
        }),
        ("cmake 1.0.0: banned, it needs CMake", &|it| {
            it.name = "cmake".into();
        }),
        ("a: several versions: {\"1.0.0\", \"2.0.0\"}", &|it| {
            *it = good("a", "2.0.0");
        }),
        ("syn: several versions: {\"3.0.10\", \"4.0.0\"}", &|it| {
            *it = good("syn", "4.0.0");
        }),
        ("b 1.0.0: any version of c", &|it| {
            it.dependencies.push(crate::graph::Dependency {
                name: "c".into(),
                req: "*".into(),
                path: None,
            });
        }),
    ];
    for (expected, spoil) in cases {
        let mut package = good("b", "1.0.0");
        spoil(&mut package);
        let found = breaches(package);
        let [found] = &found[..] else {
            panic!("{expected}: {found:?}");
        };
        assert!(found.starts_with(expected), "{found}");
    }
    policy.bans.skip[0].name = "syn@1.0.0".into();
    let found = policy.breaches(&[good("syn", "2.0.119")]);
    assert_eq!(found, ["syn@1.0.0: listed in `skip` without a use"]);
}
