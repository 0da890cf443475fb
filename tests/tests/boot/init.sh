#!/bin/sh
# The tests' init. The kernel hands `jobs=a,b` of its command line on as a variable; the jobs are done in turn.
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
IFS=,
for job in $jobs; do
    unset IFS
    case $job in
    hello) echo "hello from Linux $(uname -r), $(nproc) CPUs, $(grep MemTotal /proc/meminfo | tr -s ' ')" ;;
    # The 39th field of a process's stat is the CPU that it ran on last. A CPU that is up has its timer's interrupts.
    cpus)
        cpu=0
        while [ $cpu -lt "$(nproc)" ]; do
            echo "pinned to $cpu: ran on $(taskset $((1 << cpu)) cat /proc/self/stat | cut -d ' ' -f 39)"
            cpu=$((cpu + 1))
        done
        grep LOC /proc/interrupts | tr -s ' ' ;;
    # How the CPUs lie in the machine, and what each has for a timer.
    topology)
        grep -E 'physical id|siblings|core id|cpu cores' /proc/cpuinfo | tr -d '\t'
        cat /sys/devices/system/clockevents/clockevent*/current_device ;;
    iomem) grep 'System RAM' /proc/iomem ;;
    flags) grep -m 1 flags /proc/cpuinfo ;;
    # Which of the two came first in the kernel's log.
    random)
        echo "first: $(dmesg | grep -m 1 -oE 'crng init done|Run /init')"
        echo "random: $(head -c 8 /dev/random | hexdump -ve '1/1 "%02x"')" ;;
    receive)
        stty raw -echo
        echo ready
        head -c 4096 ;;
    # The third UART: its port and interrupt, and three bytes from it that go back.
    com3)
        if [ -e /sys/class/tty/ttyS2 ]; then
            stty -F /dev/ttyS2 raw -echo
            echo "com3: $(cat /sys/class/tty/ttyS2/port) $(cat /sys/class/tty/ttyS2/irq)"
            head -c 3 </dev/ttyS2 >/dev/ttyS2
        else
            echo "com3: none"
        fi ;;
    shell) sh ;;
    poweroff) echo ends; poweroff -f ;;
    sysrq-o) echo ends; echo o >/proc/sysrq-trigger; sleep 60 ;;
    reboot) echo ends; reboot -f ;;
    halt) echo ends; halt -f ;;
    panic) echo ends; echo c >/proc/sysrq-trigger ;;
    exit) echo ends; exit 3 ;;
    esac
done
echo "still there"
sleep 60
