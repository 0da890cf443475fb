//! What machines need: KVM, or the lab.

use std::time::Duration;

use minivm_machine::Accel;
use minivm_machine::confine::{self, Missing};
use minivm_machine::jail::{self, CpuGroup, CpuQuota};
use minivm_machine::lab::Processor;
use minivm_machine::survey::{self, Finding};
use minivm_vmm::{Error, NO_KVM};

use super::super::accel::{LAB, allowed};
use super::{Check, State, backends};

/// The check of where machines run.
const ACCEL: &str = "accel";

/// From this on, creating a machine takes noticeably longer than the rest of what minivm does.
const SLOW_CREATE_VM: Duration = Duration::from_millis(20);

/// Returns whether machines run here on KVM, whether in the lab, and the checks that decided it.
pub(super) fn checks() -> (bool, bool, Vec<Check>) {
    let good = |checks: &[Check]| checks.iter().all(|check| check.state == State::Ok);
    let kvm = [kvm_present(), kvm_usable()];
    let lab = [qemu(), lab_kernel()];
    let (kvm_works, lab_works, accel) = places(good(&kvm), good(&lab));
    let mut checks: Vec<Check> = kvm.into_iter().chain(create_vm_time()).collect();
    checks.extend(findings());
    checks.extend(nested_paging());
    checks.push(huge_pages());
    checks.push(kernel());
    checks.extend(walls());
    checks.push(quota());
    checks.extend(lab);
    checks.push(lab_jail());
    checks.push(accel);
    (kvm_works, lab_works, checks)
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
        Err(error) => Check::no(NAME, format!("cannot open /dev/kvm: {error}"), NO_KVM),
    }
}

fn kvm_usable() -> Check {
    const NAME: &str = "kvm usable";
    match minivm_machine::probe() {
        Ok(()) => Check::ok(NAME, "a guest went to user mode and back by a system call"),
        Err(Error::KvmMissing | Error::KvmPermission) => {
            Check::no(NAME, "not without /dev/kvm", "as above")
        }
        Err(error) => Check::no(
            NAME,
            error.to_string(),
            "use a host with hardware virtualization, or --accel lab for development",
        ),
    }
}

fn create_vm_time() -> Option<Check> {
    const NAME: &str = "kvm speed";
    let time = survey::create_vm_time().ok()?;
    let detail = format!("KVM_CREATE_VM takes {:.2} ms", time.as_secs_f64() * 1e3);
    Some(if time < SLOW_CREATE_VM {
        Check::ok(NAME, detail)
    } else {
        let remedy = "echo never | sudo tee /sys/module/kvm/parameters/nx_huge_pages \
                      (or mount the cgroup file system with -o favordynmods)";
        Check::slow(NAME, detail, remedy)
    })
}

/// What KVM and the processor have and lack, where there is a KVM.
fn findings() -> Vec<Check> {
    let findings = survey::kvm().unwrap_or_default();
    let check = |finding: Finding| match finding.has {
        true => Check::ok(finding.name, finding.detail),
        false => Check::slow(finding.name, finding.detail, finding.remedy),
    };
    findings.into_iter().map(check).collect()
}

/// Whether the processor translates guests' addresses by itself: x86-64's KVM also works without. Arm64's doesn't, and has no such file.
fn nested_paging() -> Option<Check> {
    const NAME: &str = "kvm: paging";
    let vendors = [("kvm_intel", "ept"), ("kvm_amd", "npt")];
    vendors.into_iter().find_map(|(module, feature)| {
        let file = format!("/sys/module/{module}/parameters/{feature}");
        let setting = std::fs::read_to_string(file).ok()?;
        Some(match setting.trim() {
            "Y" | "1" => Check::ok(NAME, format!("the processor translates guests' addresses ({feature})")),
            _ => Check::slow(
                NAME,
                format!("KVM translates guests' addresses, which makes every use of memory slower: {feature} is off"),
                format!("sudo modprobe -r {module} && sudo modprobe {module} {feature}=1, where the processor has it"),
            ),
        })
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
    let detail = "guest memory gets small pages only, which makes boots slower";
    Check::slow(NAME, detail, remedy)
}

/// The walls around a machine's monitor, of which some are around other processes as well: a check for each that is missing here.
fn walls() -> Vec<Check> {
    const NAME: &str = "walls";
    let weaker = |missing: Missing| {
        let has = |walls: &[&str]| walls.contains(&missing.wall.as_str());
        let processes = match (has(&confine::FETCHER), has(&confine::UNPACKER)) {
            (true, _) => {
                "the monitor, the reader of images, the unpacker of files and the folder server"
            }
            (false, true) => "the monitor, the unpacker of files and the folder server",
            (false, false) => "the monitor",
        };
        let detail = format!("{processes} without the wall {missing}");
        Check::slow(NAME, detail, missing.remedy())
    };
    let missing = confine::survey().missing;
    let all = || {
        let walls = [&confine::ALL[..], &confine::FETCHER, &confine::UNPACKER];
        let [monitor, fetcher, unpacker] = walls.map(|all| all.join(", "));
        format!(
            "all around the monitor: {monitor}; around the reader of images: {fetcher}; around the unpacker of files and the folder server: {unpacker}"
        )
    };
    match missing.is_empty() {
        true => vec![Check::ok(NAME, all())],
        false => missing.into_iter().map(weaker).collect(),
    }
}

/// Whether a machine's processor time can be bounded.
fn quota() -> Check {
    const NAME: &str = "monitor: quota";
    let least = CpuQuota::try_from(1.0).map(CpuGroup::create);
    match least {
        Ok(Err(error)) => {
            let (why, hint) = backends::why_and_hint(&minivm_sandbox::Error::Jail(error));
            Check::slow(NAME, why, hint)
        }
        _ => Check::ok(
            NAME,
            "--cpu-quota: minivm may make a control group with the controller cpu",
        ),
    }
}

fn qemu() -> Check {
    Check::program(
        "lab: qemu",
        Processor::default().emulated_by(),
        "sudo apt-get install qemu-system-x86",
    )
}

fn lab_kernel() -> Check {
    match minivm_machine::lab::find_kernel(Processor::default()) {
        Ok(kernel) => Check::ok("lab: kernel", kernel.display().to_string()),
        Err(error) => Check::no("lab: kernel", error.to_string(), "cargo xtask setup --lab"),
    }
}

/// The lab works without.
fn lab_jail() -> Check {
    const NAME: &str = "lab: jail";
    match jail::check() {
        Ok(()) => Check::ok(
            NAME,
            "its QEMU runs in bubblewrap's jail; that of `minivm lab --`, which shows this host's files, does not",
        ),
        Err(error) => {
            let (why, hint) = backends::why_and_hint(&minivm_sandbox::Error::Jail(error));
            Check::no(NAME, format!("its QEMU has your rights: {why}"), hint)
        }
    }
}

/// Returns whether machines can run on KVM and in the lab, as far as `MINIVM_ACCEL` lets them, and the check with that result.
fn places(kvm_works: bool, lab_works: bool) -> (bool, bool, Check) {
    match allowed() {
        Ok((kvm, lab)) => {
            let (kvm, lab) = (kvm_works && kvm, lab_works && lab);
            let some = kvm_works || lab_works;
            (kvm, lab, accel(kvm, lab, some && !kvm && !lab))
        }
        Err(error) => {
            let remedy = "set MINIVM_ACCEL to kvm, lab or auto, or unset it";
            let what = Check::no(ACCEL, error.to_string(), remedy);
            (false, false, what)
        }
    }
}

/// Returns where machines run without `--accel`. With `refused`, the variable forbids the place where they could.
fn accel(kvm_works: bool, lab_works: bool, refused: bool) -> Check {
    let (word, check) = match (kvm_works, lab_works) {
        (true, _) => {
            let detail = format!("kvm: {}", Accel::Kvm.boundary());
            ("kvm", Check::ok(ACCEL, detail))
        }
        (false, true) => {
            let remedy = "for hostile code, use a host whose KVM works; --accel kvm or MINIVM_ACCEL=kvm refuse the lab";
            ("lab", Check::slow(ACCEL, format!("lab: {LAB}"), remedy))
        }
        (false, false) if refused => {
            return Check::no(
                ACCEL,
                "none: MINIVM_ACCEL refuses what works here",
                "mend the other, or unset MINIVM_ACCEL",
            );
        }
        (false, false) => {
            return Check::no(
                ACCEL,
                "none: no machine can be run here",
                "mend KVM or the lab",
            );
        }
    };
    Check {
        accel: Some(word),
        ..check
    }
}

fn kernel() -> Check {
    match minivm_machine::kernel::find() {
        Ok(kernel) => Check::ok("kernel", kernel.display().to_string()),
        Err(error) => Check::no("kernel", error.to_string(), "cargo xtask setup"),
    }
}
