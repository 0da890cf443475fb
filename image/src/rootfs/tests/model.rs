//! Random layers, compared with an unpacker that is as simple as can be: whole paths in a map, nothing shared with the tree.

use minivm_tests::stress;
use proptest::prelude::*;

use super::*;

type Path = Vec<String>;

#[derive(Clone, Debug, PartialEq)]
enum Thing {
    Folder(u32),
    /// The number is the inode.
    File(usize, String),
    Link(String),
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Folder(String, u32),
    File(String),
    Symlink(String, String),
    Hard(String, String),
    Whiteout(String),
    Opaque(String),
}

#[derive(Default)]
pub(super) struct Model {
    things: BTreeMap<Path, Thing>,
    next: usize,
    /// Whether a path went round in circles, which nothing may.
    looped: bool,
}

fn split(path: &str) -> Path {
    path.split('/')
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

impl Model {
    /// The folder that a path means, link by link; `None` where there is no such thing. Makes what is missing if it should.
    fn folder(&mut self, path: &[String], make: bool, spared: &[Path]) -> Option<Path> {
        let mut todo: Vec<String> = path.iter().rev().cloned().collect();
        let (mut at, mut links, mut literal) = (Path::new(), 0, Path::new());
        while let Some(part) = todo.pop() {
            literal.push(part.clone());
            if part == "." {
                continue;
            }
            if part == ".." {
                at.pop();
                continue;
            }
            at.push(part);
            match self.things.get(&at) {
                Some(Thing::Folder(_)) => {}
                Some(Thing::File(..)) => return None,
                Some(Thing::Link(target)) => {
                    if links == 0 && spared.contains(&literal) {
                        return None;
                    }
                    links += 1;
                    if links > 40 {
                        self.looped = true;
                        return None;
                    }
                    at.pop();
                    if target.starts_with('/') {
                        at.clear();
                    }
                    todo.extend(split(target).into_iter().rev());
                }
                None if make => drop(self.things.insert(at.clone(), Thing::Folder(0o755))),
                None => return None,
            }
        }
        Some(at)
    }

    fn remove(&mut self, path: &[String]) {
        self.things.retain(|name, _| !name.starts_with(path));
    }

    fn put(&mut self, path: &str, thing: Thing) -> Option<()> {
        let mut path = split(path);
        let name = path.pop()?;
        let mut place = self.folder(&path, true, &[])?;
        place.push(name);
        let both = matches!(
            (&thing, self.things.get(&place)),
            (Thing::Folder(_), Some(Thing::Folder(_)))
        );
        if !both {
            self.remove(&place);
        }
        self.things.insert(place, thing);
        Some(())
    }

    pub(super) fn layer(&mut self, steps: &[Step]) -> Option<()> {
        let folders: Vec<_> = (steps.iter())
            .filter_map(|step| {
                if let Step::Folder(path, _) = step {
                    Some(split(path))
                } else {
                    None
                }
            })
            .collect();
        for step in steps {
            let (path, name) = match step {
                Step::Whiteout(path) => {
                    let mut path = split(path);
                    let name = path.pop();
                    (path, name)
                }
                Step::Opaque(path) => (split(path), None),
                _ => continue,
            };
            let Some(mut place) = self.folder(&path, false, &folders) else {
                continue;
            };
            match name {
                Some(name) => {
                    place.push(name);
                    self.remove(&place);
                }
                None => self
                    .things
                    .retain(|name, _| !name.starts_with(&place) || name.len() == place.len()),
            }
        }
        let done = steps.iter().try_for_each(|step| self.step(step));
        done.filter(|()| !self.looped)
    }

    fn step(&mut self, step: &Step) -> Option<()> {
        match step {
            Step::Folder(path, mode) => self.put(path, Thing::Folder(*mode)),
            Step::File(path) => {
                self.next += 1;
                self.put(path, Thing::File(self.next, format!("data {}", self.next)))
            }
            Step::Symlink(path, target) => self.put(path, Thing::Link(target.clone())),
            Step::Hard(path, target) => {
                let (mut path, mut target) = (split(path), split(target));
                // Folders on the way to the new name are made first, as unpackers do.
                let name = path.pop()?;
                let mut place = self.folder(&path, true, &[])?;
                place.push(name);
                let last = target.pop()?;
                let mut from = self.folder(&target, false, &[])?;
                from.push(last);
                let thing = self.things.get(&from)?.clone();
                if matches!(thing, Thing::Folder(_)) {
                    return None;
                }
                self.remove(&place);
                self.things.insert(place, thing);
                Some(())
            }
            Step::Whiteout(_) | Step::Opaque(_) => Some(()),
        }
    }

    pub(super) fn listing(&self) -> Vec<String> {
        let mut first = BTreeMap::new();
        let mut things: Vec<_> = self
            .things
            .iter()
            .map(|(path, thing)| (path.join("/"), thing))
            .collect();
        things.sort_by(|a, b| a.0.cmp(&b.0));
        let lines = things.into_iter().map(|(path, thing)| match thing {
            Thing::Folder(mode) => format!("{path}/ {mode:o}"),
            Thing::Link(target) => format!("{path} -> {target}"),
            Thing::File(inode, data) => {
                let name = first.entry(*inode).or_insert(path.clone());
                if *name == path {
                    format!("{path}: {data}")
                } else {
                    format!("{path} = {name}")
                }
            }
        });
        lines.collect()
    }
}

/// The archive's tree in the same words.
fn shown(archive: &[u8]) -> Vec<String> {
    let found = read(archive);
    let lines = listing(archive)
        .into_iter()
        .map(|line| match line.strip_suffix('/') {
            Some(name) if found.contains_key(name.as_bytes()) => {
                format!("{line} {:o}", found[name.as_bytes()].mode & 0o7777)
            }
            _ => line,
        });
    lines.collect()
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let target = prop_oneof![
        path(),
        path().prop_map(|path| format!("/{path}")),
        path().prop_map(|path| format!("../{path}")),
        Just("..".to_owned()),
        Just("/".to_owned()),
    ];
    prop_oneof![
        3 => (path(), prop::sample::select(vec![0o700, 0o755])).prop_map(|(path, mode)| Step::Folder(path, mode)),
        4 => path().prop_map(Step::File),
        1 => (path(), target).prop_map(|(path, target)| Step::Symlink(path, target)),
        1 => (path(), path()).prop_map(|(path, target)| Step::Hard(path, target)),
        2 => path().prop_map(Step::Whiteout),
        1 => path().prop_map(Step::Opaque),
    ]
}

/// The layer as an archive; files have the data that the model gives them.
pub(super) fn entries(steps: &[Step], next: &mut usize) -> Vec<Entry> {
    let entry = |step: &Step| match step {
        Step::Folder(path, mode) => folder(path).mode(*mode),
        Step::File(path) => {
            *next += 1;
            file(path, format!("data {next}"))
        }
        Step::Symlink(path, target) => symlink(path, target),
        Step::Hard(path, target) => hard(path, target),
        Step::Whiteout(path) => match path.rsplit_once('/') {
            Some((above, name)) => file(format!("{above}/.wh.{name}"), ""),
            None => file(format!(".wh.{path}"), ""),
        },
        Step::Opaque(path) => file(format!("{path}/.wh..wh..opq"), ""),
    };
    steps.iter().map(entry).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(stress::count(200, 10_000)))]

    #[test]
    fn layers_are_what_a_simple_unpacker_makes_of_them(
        layers in prop::collection::vec(prop::collection::vec(step(), 0..7), 1..4),
    ) {
        let mut model = Model::default();
        let expected = layers.iter().try_for_each(|layer| model.layer(layer));
        let mut next = 0;
        let tars: Vec<_> = layers.iter().map(|steps| entries(steps, &mut next)).collect();
        let slices: Vec<_> = tars.iter().map(|tar| &tar[..]).collect();
        match (plain(&image_of(&slices)), expected) {
            (Ok(archive), Some(())) => prop_assert_eq!(shown(&archive), model.listing()),
            (Err(_), None) => {}
            (Ok(archive), None) => prop_assert!(false, "taken: {:?}", shown(&archive)),
            (Err(error), Some(())) => prop_assert!(false, "{} instead of {:?}", chain(&error), model.listing()),
        }
    }
}
