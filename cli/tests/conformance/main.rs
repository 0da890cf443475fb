//! What holds for every sandbox, and what code in it can reach: the same functions over the trait, run for all five.
//!
//! They run real sandboxes: KVM or the lab with a real kernel, runsc, Deno, Chromium. `cargo xtask test` installs what is
//! missing and names the files in the environment. What a sandbox can't do by its nature is asserted, not left out.

// Tests run: with the tools

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod escape;
mod host;
mod kills;
mod outputs;
mod suite;
mod walls;

/// The suite, for one sandbox.
macro_rules! conforms {
    ($name:ident, $backend:ident) => {
        mod $name {
            use minivm_sandbox::Backend;

            use crate::{escape, host, kills, outputs, suite};

            conforms!(@tests $backend, suite:
                prints_the_answer, keeps_the_outputs_apart, knows_unicode, tells_type_message_and_line_of_an_exception,
                passes_exit_codes_on, ends_an_endless_loop, ends_a_memory_hog, cuts_a_flood, reads_its_input,
                refuses_what_it_has_not_declared, hands_files_and_variables_in, ends_when_it_is_stopped);
            conforms!(@tests $backend, kills: leaves_nothing_when_minivm_is_killed);
            conforms!(@tests $backend, outputs: loses_no_output);

            #[test]
            fn reaches_nothing_of_the_host() {
                escape::reaches_nothing_of_the_host(&*host::open(Backend::$backend));
            }
        }
    };
    (@tests $backend:ident, $module:ident: $($test:ident),*) => {
        $(#[test]
        fn $test() {
            $module::$test(&*host::open(Backend::$backend));
        })*
    };
}

/// What is around those that are no machines.
macro_rules! walls {
    ($name:ident, $backend:ident: $($test:ident),*) => {
        mod $name {
            use minivm_sandbox::Backend;

            use crate::{host, walls};

            $(#[test]
            fn $test() {
                walls::$test(&*host::open(Backend::$backend));
            })*
        }
    };
}

walls!(gvisor_walls, Gvisor: hold_what_breaks_out);
walls!(monty_walls, Monty: hold_what_breaks_out);
walls!(deno_walls, Deno: hold_what_breaks_out, hand_in_copies);
walls!(chromium_walls, Chromium: hold_what_breaks_out, hand_in_copies);

conforms!(microvm, Microvm);
conforms!(gvisor, Gvisor);
conforms!(monty, Monty);
conforms!(deno, Deno);
conforms!(chromium, Chromium);
