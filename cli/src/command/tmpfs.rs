//! File systems in memory, as users of containers ask for them: `--tmpfs PATH[:OPTIONS]`.

use std::path::Path;

use minivm_guest::channel::Tmpfs;

use super::guest_path::is_below_root;
use super::units;

/// What it has where no option says otherwise.
const SAFE: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Reads a flag's value.
pub(super) fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    if !is_below_root(Path::new(path)) {
        return Err("expected PATH[:OPTIONS], with an absolute path without `..`".into());
    }
    let (mut flags, mut own) = (SAFE, vec!["mode=1777".to_owned()]);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => flags |= libc::MS_RDONLY,
            "rw" => flags &= !libc::MS_RDONLY,
            "noexec" => flags |= libc::MS_NOEXEC,
            "exec" => flags &= !libc::MS_NOEXEC,
            "nosuid" => flags |= libc::MS_NOSUID,
            "suid" => flags &= !libc::MS_NOSUID,
            "nodev" => flags |= libc::MS_NODEV,
            "dev" => flags &= !libc::MS_NODEV,
            "noatime" => flags |= libc::MS_NOATIME,
            option => own.push(of_its_own(option)?),
        }
    }
    Ok(Tmpfs {
        path: path.as_bytes().to_vec(),
        flags: u32::try_from(flags).expect("they are low bits"),
        options: own.join(","),
    })
}

/// An option of tmpfs itself, checked, for the kernel would only say that one of them is wrong.
fn of_its_own(option: &str) -> Result<String, String> {
    let wrong = || {
        format!(
            "{option:?} is not an option: expected ro, rw, exec, noexec, suid, nosuid, dev, nodev, noatime, size=SIZE, mode=MODE, uid=NUMBER, gid=NUMBER or nr_inodes=NUMBER"
        )
    };
    let (name, value) = option.split_once('=').ok_or_else(wrong)?;
    let number = |radix| u32::from_str_radix(value, radix).map_err(|_| wrong());
    match name {
        // 0 is no limit, for the kernel (tmpfs(5)) as for Docker.
        "size" => Ok(format!("size={}", units::bytes(value)?)),
        "mode" => match number(8)? {
            mode if mode <= 0o7777 => Ok(format!("mode={mode:o}")),
            _ => Err(wrong()),
        },
        "uid" | "gid" | "nr_inodes" => Ok(format!("{name}={}", number(10)?)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_mounts_or_tmpfss_own() {
        let plain = tmpfs("/scratch").unwrap();
        assert_eq!(plain.path, b"/scratch");
        assert_eq!(u64::from(plain.flags), SAFE);
        assert_eq!(plain.options, "mode=1777");
        let own = tmpfs("/a/b:rw,exec,ro,size=64m,mode=0750,uid=1000").unwrap();
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_RDONLY;
        assert_eq!(u64::from(own.flags), flags);
        assert_eq!(own.options, "mode=1777,size=67108864,mode=750,uid=1000");
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        for wrong in [
            "",
            "/",
            "a",
            "/a/../b",
            "/..",
            "/a:x",
            "/a:size",
            "/a:size=x",
            "/a:mode=8",
            "/a:mode=10000",
            "/a:uid=bob",
            "/a:size=1,huge=always",
        ] {
            assert!(tmpfs(wrong).is_err(), "{wrong}");
        }
    }
}
