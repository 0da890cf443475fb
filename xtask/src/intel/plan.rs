//! The plan lists the tests that run on Intel's processors: test programs that need KVM, as they are built for this host.
//!
//! `cargo xtask test` boots and restores once on one processor. `cargo xtask test --intel` has all the rest, on each.

use std::collections::BTreeSet;
use std::env;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cargo::{self, Target};
use crate::setup::Wanted;
use crate::suite::{self, Environment, Output, Program};
use crate::tally::Tally;

/// The processors: two with AVX-512, of which the second has more of it and five levels of page tables, and one with AVX2 alone.
pub(crate) const MODELS: [&str; 3] = [
    "corei7_skylake_x",
    "corei7_icelake_u",
    "corei7_haswell_4770",
];

/// Tests of one program that run in one machine.
struct Part {
    program: &'static str,
    /// Parts of the tests' names. None: all.
    only: &'static [&'static str],
    /// Parts of the names of tests that don't run: they take too long here, and need no processor of Intel's.
    but: &'static [&'static str],
    needs: &'static [Needs],
    /// Words for the lab's kernel.
    cmdline: &'static str,
}

/// A file or folder that tests need, beside their program.
#[derive(PartialEq)]
enum Needs {
    /// What a variable of theirs names.
    Named(&'static str),
    /// A neighbour of what a variable of theirs names.
    BesideNamed(&'static str, &'static str),
    /// A program that Cargo builds for them.
    Built(&'static str),
    /// A folder of the workspace.
    Source(&'static str),
}

use Needs::{BesideNamed, Built, Named, Source};

/// What they need to be set up.
pub(crate) const WANTED: Wanted = Wanted {
    lab: true,
    sandboxes: false,
    debian_kernels: true,
    image_tools: false,
    strace: false,
    coding_image: false,
    arm64: false,
    intel: true,
};

const MINIVM: Needs = Named("MINIVM_TEST_BINARY");
const KERNEL: Needs = Named("MINIVM_TEST_KERNEL");
const BZIMAGE: Needs = Named("MINIVM_TEST_BZIMAGE");
const PYTHON: Needs = Named("MINIVM_TEST_INITRAMFS");
const PYTHON_ROOT: Needs = BesideNamed("MINIVM_TEST_INITRAMFS", "rootfs");
const DEBIAN_CLOUD: Needs = Named("MINIVM_TEST_DEBIAN_CLOUD");
const DEBIAN_GENERIC: Needs = Named("MINIVM_TEST_DEBIAN_GENERIC");

/// One boot and one snapshot.
const QUICK: Part = Part {
    program: "boot",
    only: &[
        "kernels::our_vmlinux_boots",
        "restore::a_guest_that_is_stopped_goes_on_with_the_next_byte",
    ],
    but: &[],
    needs: &[MINIVM, KERNEL],
    cmdline: "",
};

/// Tests that boot a kernel of Debian's: each takes as long as thirty boots of ours.
const DEBIANS: [&str; 6] = [
    "debians_cloud_kernel_boots",
    "debians_generic_kernel_boots",
    "all_of_debians_cloud_kernels_cpus_run",
    "a_guest_that_switches_off_is_told",
    "a_guest_that_reboots_is_told",
    "a_guest_that_panics_is_told",
];

/// Makes KVM use its processor as one that can't run real mode: KVM does that itself, in the pages of KVM_SET_TSS_ADDR, as for each
/// vCPU that another one starts.
const OLD: &str = "kvm-intel.unrestricted_guest=0";
/// Makes KVM use its processor as one without nested paging.
const OLDER: &str = "kvm-intel.ept=0";

/// All that runs with `--intel`.
const PARTS: [Part; 14] = [
    Part {
        program: "boot",
        only: &["kernels::"],
        but: &DEBIANS,
        needs: &[MINIVM, KERNEL, BZIMAGE, PYTHON],
        cmdline: "",
    },
    Part {
        program: "boot",
        only: &DEBIANS,
        but: &[],
        needs: &[MINIVM, KERNEL, DEBIAN_CLOUD, DEBIAN_GENERIC],
        cmdline: "",
    },
    Part {
        program: "boot",
        only: &["restore::", "snapshot::"],
        but: &[],
        needs: &[MINIVM, KERNEL, Built("computation")],
        cmdline: "",
    },
    Part {
        program: "boot_templates",
        only: &[
            "a_clones_wall_clock_is_the_hosts",
            "a_timer_takes_as_long_as_it_says",
            "an_images_own_command_is_the_same",
            "files_come_out_the_same",
            "no_two_clones_draw_the_same_random_number",
        ],
        but: &[],
        needs: &[MINIVM, KERNEL, PYTHON_ROOT],
        cmdline: "",
    },
    Part {
        program: "minivm_vmm",
        only: &["vcpu_state::", "forged::"],
        but: &[],
        needs: &[],
        cmdline: "",
    },
    Part {
        program: "machine_code",
        only: &[],
        but: &["machines_leave_nothing_behind"],
        needs: &[],
        cmdline: "",
    },
    Part {
        program: "snapshot",
        only: &[],
        but: &[],
        needs: &[],
        cmdline: "",
    },
    Part {
        program: "observer",
        only: &[],
        but: &[],
        needs: &[],
        cmdline: "",
    },
    Part {
        program: "pool",
        only: &[],
        but: &[],
        needs: &[],
        cmdline: "",
    },
    Part {
        program: "hostile_guests",
        only: &[],
        but: &[],
        needs: &[],
        cmdline: "",
    },
    Part {
        program: "control",
        only: &[],
        but: &[],
        needs: &[Built("minivm")],
        cmdline: "",
    },
    Part {
        program: "lesson_zero",
        only: &[],
        but: &[],
        needs: &[
            Source("docs/learn"),
            Source("vmm/examples"),
            Built("examples/raw_kvm"),
            Built("examples/what_if"),
        ],
        cmdline: "",
    },
    Part {
        program: "boot",
        only: &["all_of_our_kernels_cpus_run"],
        but: &[],
        needs: &[MINIVM, KERNEL],
        cmdline: OLD,
    },
    Part {
        program: "boot",
        only: &["all_of_our_kernels_cpus_run"],
        but: &[],
        needs: &[MINIVM, KERNEL],
        cmdline: OLDER,
    },
];

/// A part on one processor.
pub(crate) struct Job {
    part: &'static Part,
    model: &'static str,
}

/// Returns the names of all programs that have parts, each once.
pub(crate) fn programs() -> Vec<String> {
    let names = PARTS.iter().map(|part| part.program.to_owned());
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Returns whether one of these test programs needs the command `minivm`, whose release takes long to build.
pub(crate) fn need_minivm(targets: &[Target]) -> bool {
    PARTS.iter().any(|part| {
        let is_chosen = targets.iter().any(|target| target.is_called(part.program));
        is_chosen && part.needs.contains(&MINIVM)
    })
}

/// Returns the job of the plain `cargo xtask test`, with its program.
pub(crate) fn quick(programs: &[Program]) -> Vec<(&Program, Job)> {
    jobs(programs, &QUICK, MODELS[0]).collect()
}

/// Returns the jobs of `cargo xtask test --intel`, with their programs.
pub(crate) fn all(programs: &[Program]) -> Vec<(&Program, Job)> {
    let parts = PARTS
        .iter()
        .flat_map(|part| MODELS.map(|model| (part, model)));
    let jobs = parts.flat_map(|(part, model)| jobs(programs, part, model));
    jobs.filter(|(program, job)| !job.tests(program).is_empty())
        .collect()
}

fn jobs<'a>(
    programs: &'a [Program],
    part: &'static Part,
    model: &'static str,
) -> impl Iterator<Item = (&'a Program, Job)> {
    let are_its = move |program: &&Program| {
        program.executable.name == part.program && program.foreign.is_none()
    };
    let job = move |program| (program, Job { part, model });
    programs.iter().filter(are_its).map(job)
}

impl Job {
    pub(crate) fn name(&self) -> String {
        let Part {
            program, cmdline, ..
        } = self.part;
        match *cmdline {
            "" => format!("{program} ({})", self.model),
            _ => format!("{program} ({}, {cmdline})", self.model),
        }
    }

    /// Returns the tests that run: those of the part that are chosen, too.
    fn tests(&self, program: &Program) -> Vec<String> {
        let has = |name: &String, parts: &[&str]| parts.iter().any(|part| name.contains(part));
        let tests = program.tests.iter().filter(|name| {
            (self.part.only.is_empty() || has(name, self.part.only)) && !has(name, self.part.but)
        });
        tests.cloned().collect()
    }

    /// Runs them, one after the other.
    pub(crate) fn run(
        &self,
        program: &Program,
        environment: &Environment,
        output: &mut Output,
    ) -> Result<Tally> {
        let named = |variable| {
            let file = environment.file(variable).map(Path::new);
            file.with_context(|| format!("nothing was made for {variable}"))
        };
        let executable = &program.executable.path;
        let built = executable.ancestors().nth(2).unwrap_or(executable);
        let mut command = environment.bounded();
        command
            .arg(env::current_exe().context("cannot find this program")?)
            .args(["intel", "--cpu", self.model, "--kernel"])
            .arg(named("MINIVM_TEST_LAB_KERNEL")?.with_file_name("bzImage"));
        if !self.part.cmdline.is_empty() {
            command.args(["--cmdline", self.part.cmdline]);
        }
        // Where tests have files of their own, see CARGO_TARGET_TMPDIR in Cargo's book.
        command.arg("--folder").arg(built.with_file_name("tmp"));
        for needed in self.part.needs {
            let path = match needed {
                Named(variable) => named(variable)?.to_owned(),
                BesideNamed(variable, name) => named(variable)?.with_file_name(name),
                Built(name) => built.join(name),
                Source(name) => cargo::root().join(name),
            };
            command.arg("--file").arg(path);
        }
        command.arg("--").arg(executable);
        let tests = self.tests(program);
        command.args(["--include-ignored", "--exact"]).args(&tests);
        suite::run(command, program, &tests, environment, 1, output)
    }

    /// Counts them as skipped, where there is no Bochs.
    pub(crate) fn skip(&self, program: &Program, output: &mut Output) -> Result<Tally> {
        let tests = self.tests(program);
        let why = format!("Bochs can't be had: {}", tests.join(", "));
        suite::skip(tests.len(), &why, output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of the sources of a test program.
    fn sources(name: &str) -> String {
        let targets = cargo::test_targets().unwrap();
        let target = targets.iter().find(|target| target.is_called(name));
        let target = target.unwrap_or_else(|| panic!("there is no test program {name}"));
        crate::choice::sources(&target.source).concat()
    }

    #[test]
    fn what_parts_name_is_there() {
        for part in PARTS.iter().chain([&QUICK]) {
            let text = sources(part.program);
            for name in part.only.iter().chain(part.but) {
                let name = name.rsplit("::").next().unwrap();
                assert!(text.contains(name), "{} has no {name}", part.program);
            }
        }
    }
}
