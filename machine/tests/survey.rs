//! What a survey and a probe find of this host's KVM.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]

use std::collections::BTreeSet;

use minivm_machine::{probe, survey};
use minivm_vmm::Error;

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

/// Some KVMs emulate a kernel's mode, and get system calls wrong.
#[test]
fn a_guest_comes_back_from_user_mode_or_the_kvm_is_named_unusable() {
    match probe() {
        Ok(()) => {}
        Err(Error::KvmUnusable(why)) => eprintln!("this KVM is unusable: {why}"),
        Err(error) => panic!("{error}"),
    }
}
