//! What a command finds around it: a container's surroundings, made by minivm's init.

use std::time::SystemTime;

use crate::guest::shell_text;

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

/// Each check prints its name if it fails.
const CHECKS: &str = r#"
check() { name=$1; shift; "$@" || echo "failed: $name"; }
is() { [ "$2" = "$3" ] || echo "failed: $1 is $2, not $3"; }
mounted() { grep -q "^[^ ]* $1 $2 " /proc/mounts || echo "failed: no $2 on $1"; }

mounted / overlay
mounted /proc proc; mounted /sys sysfs; mounted /dev devtmpfs
mounted /dev/pts devpts; mounted /dev/shm tmpfs; mounted /tmp tmpfs; mounted /run tmpfs
mounted /sys/fs/cgroup cgroup2
is modes "$(stat -c %a /tmp /dev/shm /run /dev | tr '\n' ' ')" "1777 1777 755 755 "
for file in /tmp/a /run/a /dev/shm/a /root/a /a; do
    echo x > $file && is content "$(cat $file)" x
done
is fd "$(readlink /dev/fd)" /proc/self/fd
is stdin "$(echo through | cat /dev/stdin)" through
is stdout "$(echo through > /dev/stdout)" through
is stderr "$( (echo through > /dev/stderr) 2>&1 )" through
is null "$(cat /dev/null)" ""
is zero "$(head -c 4 /dev/zero | hexdump -ve '1/1 "%02x"')" 00000000
is full "$(echo x 2>&1 > /dev/full | grep -c 'No space')" 1
is ptmx "$(readlink /dev/ptmx)" pts/ptmx
check tty test -c /dev/tty
is cgroup "$(cat /proc/self/cgroup)" 0::/command
check members grep -q "^$$\$" /sys/fs/cgroup/command/cgroup.procs
is loopback "$(cat /sys/class/net/lo/operstate)" unknown
nc -l -p 4711 -e sh -c 'read word; echo answer $word' &
n=0
until answer=$(echo question | nc -w 5 127.0.0.1 4711 2>/dev/null) || [ $n = 200 ]; do n=$((n + 1)); done
is tcp "$answer" "answer question"
is pid "$$" "$(cut -d' ' -f6 /proc/self/stat)"
check session [ $$ -gt 1 ]
ls /proc/self/fd > /tmp/fds
is descriptors "$(tr '\n' ' ' < /tmp/fds)" "0 1 2 3 "
is leftovers "$(ls -a / | grep -c minivm)" 0
is init "$(ls /init 2>&1 | grep -c 'No such')" 1
is root "$(ls / | tr '\n' ' ')" "a bin data dev etc home proc root run sys tmp "
echo "clock $(date +%s)"
echo "random $(head -c 16 /dev/urandom | hexdump -ve '1/1 "%02x"')"
"#;

#[test]
fn a_command_finds_what_containers_have() {
    let randoms = ["1", "2"].map(|cpus| {
        let before = now();
        let text = shell_text(
            &["--cpus", cpus],
            &format!("{CHECKS}\necho cpus $(grep -c ^processor /proc/cpuinfo)"),
        );
        let lines: Vec<&str> = text.lines().collect();
        let [clock, random, count] = lines[..] else {
            panic!("{text}");
        };
        assert_eq!(count, format!("cpus {cpus}"));
        let clock: u64 = clock.strip_prefix("clock ").unwrap().parse().unwrap();
        assert!(
            (before..=now() + 1).contains(&clock),
            "{before}, {clock}, {}",
            now()
        );
        let random = random.strip_prefix("random ").unwrap().to_owned();
        assert_eq!(random.len(), 32);
        random
    });
    assert_ne!(randoms[0], randoms[1]);
}

#[test]
fn a_user_can_open_its_own_output_by_name() {
    let text = shell_text(
        &["-u", "app"],
        "echo out > /dev/stdout; echo also > /proc/self/fd/1; exec 2>&1; echo err > /dev/stderr; ls -l /dev/null",
    );
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("out"));
    assert_eq!(lines.next(), Some("also"));
    assert_eq!(lines.next(), Some("err"));
    let null = lines.next().unwrap();
    assert!(
        null.starts_with("crw-rw-rw-") && null.contains(" root "),
        "{null}"
    );
}
