//! What `runsc` is told: its arguments, and the container's configuration (OCI runtime specification, `config.json`).

use serde_json::json;

use super::vm_options::HOSTNAME;

/// Where things are in the jail.
pub(super) const RUNSC: &str = "/runsc";
pub(super) const ROOT: &str = "/image";
pub(super) const CONFIG: &str = "/bundle/config.json";
const BUNDLE: &str = "/bundle";
/// runsc's notes about its containers: they go with the jail.
const STATE: &str = "/tmp/runsc";
/// What the container is called.
pub(super) const NAME: &str = "minivm";

/// Processes and threads. Each takes two or three of the host's, of which the sandbox's control group allows 1024: at more, the
/// sentry would crash.
const PROCESSES: u64 = 256;
const OPEN_FILES: u64 = 4096;

/// What containers' root may do. It is the sentry that asks, of its own processes and files: the host has given none of it away.
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

/// Its arguments, up to the open files that are handed in and the container's name.
///
/// `run` rather than `do`: it takes its environment and folders from the configuration and not from the caller, and open files.
/// The layer over the root is in memory, or it would be a file in the root, which can't be written to. Control groups are the
/// surroundings' business, and so is the end of all: nothing needs `delete`.
pub(super) fn runsc_args() -> Vec<String> {
    let state = format!("--root={STATE}");
    let bundle = format!("--bundle={BUNDLE}");
    [
        "--network=none",
        "--ignore-cgroups",
        "--overlay2=root:memory",
        "--host-uds=none",
        "--host-fifo=none",
        // The sentry's last words go where runsc's do.
        "--panic-log=/proc/self/fd/2",
        &state,
        "run",
        &bundle,
    ]
    .map(String::from)
    .to_vec()
}

/// The configuration of a container that `minivm-init` is the first process of, as root: it runs the command as its user.
pub(super) fn config() -> Vec<u8> {
    let container = Container {
        root: ROOT,
        arguments: &["minivm-init", minivm_guest::contained::ARGUMENT],
        env: &[],
        capabilities: &CAPABILITIES,
    };
    container.config()
}

/// A container.
pub(super) struct Container<'a> {
    /// Its root folder.
    pub(super) root: &'a str,
    /// Its first process.
    pub(super) arguments: &'a [&'a str],
    /// That one's environment, `NAME=value` each.
    pub(super) env: &'a [String],
    /// And what it may do.
    pub(super) capabilities: &'a [&'a str],
}

impl Container<'_> {
    /// Its configuration.
    pub(super) fn config(&self) -> Vec<u8> {
        let limit = |name: &str, value: u64| json!({"type": name, "soft": value, "hard": value});
        let namespaces = ["pid", "network", "ipc", "uts", "mount"];
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
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": namespaces},
        });
        config.to_string().into_bytes()
    }
}
