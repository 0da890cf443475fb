//! What a survey finds of this host's KVM.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]

use std::collections::BTreeSet;

use minivm_machine::survey;

#[test]
fn each_finding_has_a_short_name_of_its_own_and_a_remedy_where_it_is_needed() {
    let all = survey::kvm().unwrap();
    let names: BTreeSet<_> = all.iter().map(|finding| finding.name).collect();
    assert_eq!(names.len(), all.len(), "{all:?}");
    assert!(all.len() > 1, "{all:?}");
    for finding in all {
        assert!(finding.name.len() <= 14, "{finding:?}");
        assert!(!finding.detail.is_empty(), "{finding:?}");
        assert!(finding.has || !finding.remedy.is_empty(), "{finding:?}");
    }
}
