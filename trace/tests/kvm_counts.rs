//! KVM's own counts of a guest of a few bytes, as its trace has them.

// Tests run: on any KVM

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]

use std::time::Instant;

use minivm_tests::code::{RESET, show};
use minivm_trace::{Event, Sink, Tracer};
use minivm_vmm::{Builder, Config, Kernel};

/// Keeps the last event of counts.
#[derive(Default)]
struct Counts(Option<Event>);

impl Sink for Counts {
    fn event(&mut self, event: Event) {
        if matches!(event, Event::Counts { .. } | Event::NoCounts { .. }) {
            self.0 = Some(event);
        }
    }
}

#[test]
fn kvm_counts_at_least_the_exits_that_were_seen() {
    let tracer = Tracer::start(Counts::default(), Instant::now()).unwrap();
    let code = [&show(b'1')[..], &show(b'2'), &RESET].concat();
    let builder = Builder::new(Config::new(Kernel::Code(code)));
    builder
        .observer(tracer.clone())
        .build()
        .unwrap()
        .run()
        .unwrap();
    let counts = match tracer.finish().unwrap().0 {
        Some(Event::Counts { counts }) => counts,
        Some(Event::NoCounts { reason }) => {
            // Linux before 5.14 counts for its debug file system alone.
            return eprintln!("skipped: this KVM gives no counts: {reason}");
        }
        other => panic!("{other:?}"),
    };
    let exits = counts.iter().find(|one| one.name == "exits").unwrap();
    assert_eq!(exits.vcpu, Some(0));
    assert!(exits.count >= 3, "{counts:?}");
    assert!(counts.iter().any(|one| one.vcpu.is_none()));
}
