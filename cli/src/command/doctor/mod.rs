//! `minivm doctor`: checks of what works on this host, with the reason and the command that mends what doesn't.

mod backends;
mod fix;
mod machine;

use std::process::{Command, ExitCode, Stdio};

use clap::Args;
use minivm_machine::jail::find_program;
use serde::Serialize;

#[derive(Args)]
#[command(
    after_help = "Exit code: 0 if a machine can be run here, on KVM or in the lab; with --fix, if all sandboxes can."
)]
pub(super) struct DoctorArgs {
    /// Print a JSON array with an object for each check
    #[arg(long)]
    json: bool,
    /// Install what sandboxes lack before the checks
    #[arg(long)]
    fix: bool,
}

/// The result of a check.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// Everything is as it should be.
    Ok,
    /// The thing works, less well than it could.
    Slow,
    /// The thing isn't there, or doesn't work.
    No,
}

/// One check's result.
#[derive(Serialize)]
struct Check {
    name: &'static str,
    state: State,
    detail: String,
    /// The command or change that mends it, where there is one.
    remedy: Option<String>,
    /// The accelerator of machines, `kvm` or `lab`, in the check that decides it.
    accel: Option<&'static str>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Check {
            name,
            state: State::Ok,
            detail: detail.into(),
            remedy: None,
            accel: None,
        }
    }

    fn no(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Check {
            name,
            state: State::No,
            detail: detail.into(),
            remedy: Some(remedy.into()),
            accel: None,
        }
    }

    /// The check of a program that is looked up in PATH, and prints its version.
    fn program(name: &'static str, program: &str, remedy: &str) -> Check {
        let Some(path) = find_program(program) else {
            let why = format!("{program} is not installed, or PATH lacks its folder");
            return Check::no(name, why, remedy);
        };
        match Command::new(&path)
            .arg("--version")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
        {
            Ok(output) if output.status.success() => {
                let text = String::from_utf8_lossy(&output.stdout);
                Check::ok(name, text.lines().next().unwrap_or("").to_string())
            }
            Ok(output) => Check::no(
                name,
                format!("{} --version failed: {}", path.display(), output.status),
                remedy,
            ),
            Err(error) => Check::no(
                name,
                format!("cannot run {}: {error}", path.display()),
                remedy,
            ),
        }
    }

    /// Works, less well than it could.
    fn slow(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Check {
            state: State::Slow,
            ..Check::no(name, detail, remedy)
        }
    }
}

/// Checks everything and prints it.
pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let mended = !args.fix || fix::fix()?;
    let (kvm_works, lab_works, mut checks) = machine::checks();
    checks.extend(backends::checks());
    if args.json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        print_table(&checks);
        println!("\n{}", verdict(kvm_works, lab_works));
    }
    let works = mended && (kvm_works || lab_works);
    Ok(ExitCode::from(u8::from(!works)))
}

fn verdict(kvm_works: bool, lab_works: bool) -> &'static str {
    match (kvm_works, lab_works) {
        (true, _) => "Machines run on this host's KVM.",
        (false, true) => {
            "Machines run in the lab, an emulator for development: correct, slow, and no wall against hostile code."
        }
        (false, false) => "No machine can be run here; mend KVM or the lab.",
    }
}

fn print_table(checks: &[Check]) {
    for check in checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Slow => "slow",
            State::No => "no",
        };
        println!("{state:<5} {:<14} {}", check.name, check.detail);
        if let Some(remedy) = &check.remedy {
            println!("{:20} → {remedy}", "");
        }
    }
}
