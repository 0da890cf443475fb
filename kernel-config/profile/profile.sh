#!/usr/bin/env bash
# profile.sh RESULT [CMDLINE]: what a kernel spends its instructions on, from its entry to /init, by function.
# RESULT is a folder that build.sh printed, CMDLINE is added to the kernel's command line, $TOP says how many functions (20).
# Counts in QEMU's emulation, directly: no KVM, no exits. Repeatable to 0.1 %, whatever else the machine does.
# Needs gcc, cpio, qemu-system-x86.
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
result=${1:?usage: profile.sh RESULT [CMDLINE]}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

gcc -O2 -Wall -shared -fPIC -o "$work/count.so" "$here/count.c"
mkdir -p "$work/root"
echo 'void _start(void) { for (;;) ; }' >"$work/init.c"
gcc -O2 -nostdlib -static -no-pie -fno-pic -mcmodel=large -Wl,-Ttext-segment=0x7a0000000000 -s -o "$work/root/init" "$work/init.c"
(cd "$work/root" && echo init | cpio -o -H newc --quiet >"$work/init.cpio")

# -xsaves: TCG has none. tsc_early_khz: TCG's TSC is 1 GHz here, and there is no PIT to measure it against.
COUNTS=$work/counts timeout -s KILL 300 qemu-system-x86_64 \
  -M microvm,acpi=on,pit=off,pic=off,rtc=off,isa-serial=on,pcie=off -cpu EPYC,-xsaves -m 256M \
  -accel tcg,thread=single -icount shift=0 -plugin "$work/count.so" \
  -nodefaults -no-user-config -display none -serial null -no-reboot \
  -kernel "$result/bzImage" -initrd "$work/init.cpio" -append "console=ttyS0 quiet tsc_early_khz=1000000 ${2:-}" \
  </dev/null 2>/dev/null || { echo "profile.sh: the kernel didn't reach /init" >&2; exit 1; }

# Addresses are hexadecimal digits of one width, so they sort as text. What isn't in the upper half of the addresses is firmware
# and the unpacking of the bzImage. What only this machine makes the kernel do is left out: it polls a clock (RTC) that isn't
# there and times the APIC by the TSC, which a guest of KVM needn't.
{
  awk '$2 ~ /[tTwW]/ && $1 >= "ffff" { print $1, 0, $3 }' "$result/System.map"
  awk '{ print $1, 1, $2 }' "$work/counts"
} | sort | awk -v top="${TOP:-20}" '
  $2 == 0 { name = $3; next }
  $1 < "ffff" { before += $3; next }
  name ~ /^(delay_tsc|setup_boot_APIC_clock|calibrate_APIC_clock|quick_pit_calibrate|mc146818_.*|rtc_cmos_read|read_tsc)$/ { polling += $3; next }
  { count[name] += $3; all += $3 }
  END {
    printf "%.2f M instructions to /init (left out: %.1f M before the kernel, %.1f M of polling)\n", all / 1e6, before / 1e6, polling / 1e6
    for (name in count) printf "%9d %5.2f %%  %s\n", count[name], 100 * count[name] / all, name | "sort -rn | head -" top
  }'
