#!/bin/sh
# PID 1 of the demo: asks Python, and ends the machine.
mount -t proc proc /proc
mount -t devtmpfs dev /dev
exec > /dev/ttyS0 2>&1
/usr/local/bin/python3 -S -c "print(2+2)"
# The kernel announces what sysrq does, even to a console that is quiet: take the console away from it first.
mount -t sysfs sys /sys
echo N > /sys/class/tty/ttyS0/console
echo o > /proc/sysrq-trigger # power off; this comes back before it is done
sleep 5
