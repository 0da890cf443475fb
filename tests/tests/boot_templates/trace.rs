//! The trace of a run from a template.

use std::fs;

use crate::guest::{end_of, run_from, scratch, small};

#[test]
fn a_warm_run_is_traced_from_where_its_template_was_saved() {
    small();
    let trace = scratch("warm.jsonl");
    let flag = format!("--trace={}", trace.display());
    let ended = end_of(run_from("small", &[&flag], &["--", "echo", "hi"]));
    assert_eq!((ended.code, &*ended.text()), (Some(0), "hi\n"), "{ended:?}");
    let counted = ended.stderr.starts_with("Exits to minivm, out of KVM: ");
    assert!(
        counted && !ended.stderr.contains("Without an explanation"),
        "{ended:?}"
    );
    let trace = fs::read_to_string(trace).unwrap();
    for step in ["state-set", "built", "entered", "ended", "closed"] {
        assert!(
            trace.contains(&format!(r#""step":"{step}""#)),
            "{step}: {trace}"
        );
    }
    assert!(
        !trace.contains("kernel-loaded"),
        "it has not booted: {trace}"
    );
    // The guest's init answers by doorbells.
    assert!(
        trace.contains(r#""device":"com2","meaning":"COM2: transmit"#),
        "{trace}"
    );
}
