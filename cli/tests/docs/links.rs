//! Links lead to files and headings that are there.

use std::collections::BTreeSet;

use crate::{lines, pages, root};

/// What a heading is called in an address, as GitHub does it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    lines(text)
        .filter(|(code, line)| !code && line.starts_with('#'))
        .map(|(_, heading)| anchor(heading))
        .collect()
}

/// What a line links to.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
}

#[test]
fn every_link_leads_to_a_file_or_heading_that_is_there() {
    let pages = pages();
    let mut found = 0;
    for (page, text) in &pages {
        let links = lines(text)
            .filter(|(code, _)| !code)
            .flat_map(|(_, line)| targets(line));
        for link in links.filter(|link| !link.starts_with("https://")) {
            found += 1;
            let about = format!("{} links to {link}", page.display());
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.clone(),
                path => page.parent().unwrap().join(path),
            };
            let target = target.canonicalize();
            let target = target.unwrap_or_else(|error| panic!("{about}: {error}"));
            assert!(target.starts_with(root()), "{about}, outside the project");
            if !heading.is_empty() {
                let text = pages.get(&target);
                let text = text.unwrap_or_else(|| panic!("{about}, which is no page"));
                assert!(anchors(text).contains(heading), "{about}: no such heading");
            }
        }
    }
    assert!(found > 100, "{found} links");
}
