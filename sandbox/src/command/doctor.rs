//! `minivm doctor`: what works on this host, why not, and the command that mends it.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Args;
use minivm_vmm::Error;
use serde::Serialize;

#[derive(Args)]
pub(super) struct DoctorArgs {
    /// Print a JSON array, one object a check
    #[arg(long)]
    json: bool,
}

/// How a check went.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// It works, less well than it could.
    Slow,
    /// It isn't there, or doesn't work.
    No,
}

/// One check's result.
#[derive(Serialize)]
struct Check {
    name: &'static str,
    state: State,
    detail: String,
    /// What mends it, where something is to be mended.
    remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Check {
            name,
            state: State::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn no(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Check {
            name,
            state: State::No,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// From this on, creating a machine takes noticeably longer than the rest of what minivm does.
const SLOW_CREATE_VM: Duration = Duration::from_millis(20);

/// Checks everything and prints it. The exit code is 0 if a machine can be run here, on KVM or in the lab.
pub(super) fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let kvm = [kvm_present(), kvm_usable()];
    let kvm_works = kvm.iter().all(|check| check.state == State::Ok);
    let lab = [qemu(), lab_kernel()];
    let lab_works = lab.iter().all(|check| check.state == State::Ok);
    let mut checks: Vec<Check> = kvm.into_iter().chain(create_vm_time()).collect();
    checks.push(huge_pages());
    checks.extend(lab);
    checks.extend(
        OTHERS
            .iter()
            .map(|(name, program, remedy)| other(name, program, remedy)),
    );

    if args.json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        print_table(&checks);
        println!("\n{}", verdict(kvm_works, lab_works));
    }
    Ok(if kvm_works || lab_works {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn verdict(kvm_works: bool, lab_works: bool) -> &'static str {
    match (kvm_works, lab_works) {
        (true, _) => "Machines run on this host's KVM.",
        (false, true) => {
            "Machines run in the lab, an emulated machine with real KVM: correct, and slow."
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

fn kvm_present() -> Check {
    const NAME: &str = "kvm";
    match std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => Check::ok(NAME, "/dev/kvm is there, and this user may open it"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Check::no(
            NAME,
            "/dev/kvm is there, but not for this user",
            "sudo usermod -aG kvm $USER, and log in again",
        ),
        Err(error) => Check::no(
            NAME,
            format!("cannot open /dev/kvm: {error}"),
            "sudo modprobe kvm_intel || sudo modprobe kvm_amd; virtualization may be off in the firmware or cloud",
        ),
    }
}

fn kvm_usable() -> Check {
    const NAME: &str = "kvm usable";
    match minivm_vmm::probe() {
        Ok(()) => Check::ok(NAME, "a guest went to user mode and back by a system call"),
        Err(Error::KvmMissing | Error::KvmPermission) => {
            Check::no(NAME, "not without /dev/kvm", "as above")
        }
        Err(error) => Check::no(
            NAME,
            error.to_string(),
            "use a host with hardware virtualization, or --accel lab",
        ),
    }
}

fn create_vm_time() -> Option<Check> {
    const NAME: &str = "kvm speed";
    let time = minivm_vmm::create_vm_time().ok()?;
    let detail = format!("KVM_CREATE_VM takes {:.2} ms", time.as_secs_f64() * 1e3);
    Some(if time < SLOW_CREATE_VM {
        Check::ok(NAME, detail)
    } else {
        let remedy = "echo never | sudo tee /sys/module/kvm/parameters/nx_huge_pages \
                      (or mount the cgroup file system with -o favordynmods)";
        Check {
            name: NAME,
            state: State::Slow,
            detail,
            remedy: Some(remedy.into()),
        }
    })
}

fn huge_pages() -> Check {
    const NAME: &str = "huge pages";
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let setting = std::fs::read_to_string(FILE).unwrap_or_default();
    if setting.contains("[always]") || setting.contains("[madvise]") {
        return Check::ok(
            NAME,
            format!("guest memory gets huge pages ({})", setting.trim()),
        );
    }
    let remedy = format!("echo madvise | sudo tee {FILE}");
    let detail = "guest memory gets small pages only, which makes boots slower".into();
    Check {
        name: NAME,
        state: State::Slow,
        detail,
        remedy: Some(remedy),
    }
}

fn qemu() -> Check {
    other(
        "lab: qemu",
        minivm::lab::QEMU,
        "sudo apt-get install qemu-system-x86",
    )
}

fn lab_kernel() -> Check {
    match minivm::lab::find_kernel() {
        Ok(kernel) => Check::ok("lab: kernel", kernel.display().to_string()),
        Err(error) => Check::no("lab: kernel", error.to_string(), "cargo xtask setup --lab"),
    }
}

/// What the other ways to run code need: the check's name, the program, and the command that installs it.
const OTHERS: [(&str, &str, &str); 4] = [
    (
        "gvisor",
        "runsc",
        "https://gvisor.dev/docs/user_guide/install (Debian: apt-get install runsc)",
    ),
    ("deno", "deno", "npm install --global deno"),
    ("chromium", "chromium", "sudo apt-get install chromium"),
    ("python", "python3", "sudo apt-get install python3"),
];

fn other(name: &'static str, program: &str, remedy: &str) -> Check {
    let Some(path) = find_program(program) else {
        return Check::no(name, format!("{program} is not installed"), remedy);
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

fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}
