//! The arguments of `runsc`, and the container's configuration (OCI runtime specification, `config.json`).

use serde_json::json;

use super::vm_options::HOSTNAME;

/// The path of `runsc` in the jail.
pub(super) const RUNSC: &str = "/runsc";
/// The path of the image's root in the jail.
pub(super) const ROOT: &str = "/image";
/// The path of the container's configuration in the jail.
pub(super) const CONFIG: &str = "/bundle/config.json";
/// The folder of the jail with the folders that are shared, by their numbers.
pub(super) const SHARED: &str = "/shared";
/// The folder of the jail with empty folders and files at the places of those, for a container's image may not have them.
pub(super) const PLACES: &str = "/places";
const BUNDLE: &str = "/bundle";
/// The folder of runsc's state, which is removed with the jail.
const STATE: &str = "/tmp/runsc";
/// The container's ID.
pub(super) const NAME: &str = "minivm";

/// The limit on processes and threads of the container. Each takes two or three of the host's, of which the sandbox's control
/// group allows 1024; the sentry would crash at that limit.
const PROCESSES: u64 = 256;
const OPEN_FILES: u64 = 4096;

/// The capabilities of containers' root. The sentry checks them for its own processes and files; they grant nothing on the host.
const CAPABILITIES: [&str; 10] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Returns runsc's arguments, up to the inherited descriptors and the container's ID.
///
/// `run` rather than `do`: it takes its environment and folders from the configuration and not from the caller, and it accepts
/// inherited descriptors. The overlay over the root is in memory; by default it would be a file in the root, which is read-only.
/// The process that starts the jail sets limits by its control group and ends all processes, so `delete` isn't needed.
pub(super) fn runsc_args() -> Vec<String> {
    let state = format!("--root={STATE}");
    let bundle = format!("--bundle={BUNDLE}");
    [
        "--network=none",
        "--ignore-cgroups",
        "--overlay2=root:memory",
        "--host-uds=none",
        "--host-fifo=none",
        // A panic of the sentry is written to runsc's stderr.
        "--panic-log=/proc/self/fd/2",
        &state,
        "run",
        &bundle,
    ]
    .map(String::from)
    .to_vec()
}

/// A folder or file of the jail that the container gets.
pub(super) struct Share {
    /// The path in the jail.
    pub(super) source: String,
    /// The path in the container.
    pub(super) at: String,
    /// Whether the container may change it.
    pub(super) writable: bool,
}

/// Returns the configuration of a container whose first process is `minivm-init` as root, which runs the command as its user.
pub(super) fn config(shares: &[Share]) -> Vec<u8> {
    let container = Container {
        root: ROOT,
        arguments: &["minivm-init", minivm_guest::contained::ARGUMENT],
        env: &[],
        capabilities: &CAPABILITIES,
        shares,
    };
    container.config()
}

/// A container.
pub(super) struct Container<'a> {
    /// The root folder.
    pub(super) root: &'a str,
    /// The first process's program and arguments.
    pub(super) arguments: &'a [&'a str],
    /// The first process's environment, `NAME=value` each.
    pub(super) env: &'a [String],
    /// The first process's capabilities.
    pub(super) capabilities: &'a [&'a str],
    /// What it gets beside its root.
    pub(super) shares: &'a [Share],
}

impl Container<'_> {
    /// Returns the container's configuration as JSON.
    pub(super) fn config(&self) -> Vec<u8> {
        let limit = |name: &str, value: u64| json!({"type": name, "soft": value, "hard": value});
        let namespaces = ["pid", "network", "ipc", "uts", "mount"];
        let shares = self.shares.iter().map(|share| {
            let access = if share.writable { "rw" } else { "ro" };
            json!({
                "destination": share.at,
                "type": "bind",
                "source": share.source,
                "options": ["rbind", access, "nosuid", "nodev"],
            })
        });
        let proc = json!({"destination": "/proc", "type": "proc", "source": "proc"});
        let mounts: Vec<_> = [proc].into_iter().chain(shares).collect();
        let namespaces = json!(namespaces.map(|kind| json!({"type": kind})));
        let config = json!({
            "ociVersion": "1.0.2",
            "hostname": HOSTNAME,
            "root": {"path": self.root, "readonly": false},
            "process": {
                "args": self.arguments,
                "cwd": "/",
                "env": self.env,
                "user": {"uid": 0, "gid": 0},
                "noNewPrivileges": true,
                "capabilities": {
                    "bounding": self.capabilities,
                    "effective": self.capabilities,
                    "permitted": self.capabilities,
                },
                "rlimits": [
                    limit("RLIMIT_NPROC", PROCESSES),
                    limit("RLIMIT_NOFILE", OPEN_FILES),
                    limit("RLIMIT_CORE", 0),
                ],
            },
            "mounts": mounts,
            "linux": {"namespaces": namespaces},
        });
        config.to_string().into_bytes()
    }
}
