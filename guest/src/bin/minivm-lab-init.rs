//! `minivm-lab-init`: the first process of a lab, and nothing else.
//!
//! A lab whose processor is the host's has `minivm` itself as its first process. This program is for a lab with another processor: it is
//! small, and compiles for one within seconds.

fn main() {
    minivm_guest::inherited::signals();
    minivm_guest::lab::run_as_init();
}
