#!/bin/busybox sh
# Process 1 of the emulated Intel machine. Runs /job; its output goes over COM2 between two lines that begin with the machine's
# token, which the second one follows with the job's exit code. COM1 is the kernel's console.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
ln -s /proc/self/fd /dev/fd
ip link set lo up
stty -F /dev/ttyS1 115200 raw
token=$(cat /token)
{
    echo "$token started"
    sh /job </dev/null 2>&1
    # The first line break ends what the job wrote.
    printf '\n%s exited %s\n' "$token" $?
    # A process that still has the port open keeps its last bytes from being sent.
    kill -9 -1
} >/dev/ttyS1
# Bochs ends when its processor resets.
reboot -f
