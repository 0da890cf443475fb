//! The processor time of a clone is bounded, or the clone is refused where that can't be had: it never runs without.

use minivm_machine::jail::CpuGroup;

use crate::guest::{end_of, run_from, small};

#[test]
fn a_clone_has_its_bound_or_is_refused() {
    small();
    let flags = ["--cpu-quota", "0.5"];
    let ended = end_of(run_from("small", &flags, &["--", "echo", "4"]));
    match CpuGroup::create("0.5".parse().unwrap()) {
        Ok(_) => assert_eq!((ended.code, &*ended.text()), (Some(0), "4\n"), "{ended:?}"),
        Err(error) => {
            assert_eq!((ended.code, &*ended.text()), (Some(125), ""));
            assert_eq!(ended.stderr, format!("minivm: {error}\n"));
        }
    }
}
