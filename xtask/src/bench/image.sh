# Runs guests in the lab and prints what Found in image.rs understands.
# Arguments: minivm, image, image with a large file, runs, bytes for the rings, bytes for the UART.
set -e
minivm=$1 image=$2 large=$3 runs=$4 bulk=$5 trickle=$6
head -c "$bulk" /dev/urandom > /tmp/bulk
head -c "$trickle" /tmp/bulk > /tmp/trickle

run() { "$minivm" run --accel kvm --quiet --entrypoint= "$@"; }

# move KIND THEN: one transfer, after which the guest's shell does THEN.
move() {
    rings= in=/dev/null do=:
    case $1 in uart-*) rings=--no-rings bytes=$trickle file=/tmp/trickle ;; *) bytes=$bulk file=/tmp/bulk ;; esac
    case $1 in *-out) do="head -c $bytes /dev/zero" ;; *-in) in=$file do="cat > /dev/null" ;; esac
    run --verbose -i $rings "$image" -- sh -c "$do$2" < $in 2> /tmp/said > /dev/null
}

# root NAME FORMAT IMAGE: one cold run, in which Python tells how many kB of its machine's memory are in use.
used='print(2+2); m = dict(line.split(":") for line in open("/proc/meminfo")); print(*(int(m[k].split()[0]) for k in ("MemTotal", "MemFree")))'
# A shell's echo may take the backslashes in it for its own.
root() { printf 'root %s %s\n' "$1" "$(MINIVM_ROOT_FORMAT=$2 run --json "$3" -- python3 -c "$used")"; }

# Into the cache, and into the lab's memory.
run "$image" -- true
i=0
while [ $i -le "$runs" ]; do
    root initramfs initramfs "$image"
    root mapped erofs "$image"
    root large erofs "$large"
    i=$((i + 1))
done
i=0
while [ $i -lt "$runs" ]; do
    i=$((i + 1))
    echo "phases $(run --json "$image" -- true)"
    for kind in rings-out rings-in uart-out uart-in; do
        move $kind ''
        echo "moved $kind $(sed -n 's/.* run \([0-9.]*\) s,.*/\1/p' /tmp/said)"
    done
done

# The kernel counts the exits of machines that are there: the guest stays until they have been read.
for kind in nothing rings-out rings-in uart-out uart-in; do
    move $kind '; sleep 1' &
    most=0
    while kill -0 $! 2> /dev/null; do
        now=$(cat /sys/kernel/debug/kvm/exits)
        if [ "$now" -gt "$most" ]; then most=$now; fi
        sleep 0.2
    done
    echo "exits $kind $most"
done
