#!/usr/bin/env bash
# Builds a small Linux kernel from a config fragment beside this script and keeps it by content:
# the same fragment, source and compiler give the same path, at once. README.md beside it tells more.
set -euo pipefail
export LC_ALL=C
umask 022 # minivm believes no kernel that others could have changed
readonly RECIPE=1 # part of the key: raise it where a change below changes what is built
readonly HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'TEXT'
Usage: build.sh [--source TREE|TARBALL|PACKAGE] [--fragment FILE] [--cache DIR] [--print-path]

Builds a Linux kernel from `make allnoconfig` plus a fragment: for arm64 if the fragment's name ends with -arm64, else for
x86-64. The last line on stdout is the folder that holds vmlinux, bzImage (x86-64) or Image (arm64), config, System.map and
build.log; progress goes to stderr.
The folder is <cache>/kernel/<fragment>/<key>, and <cache>/kernel/<fragment>/current points to the last one asked for.

  --source    a Linux tree, a tarball of one, or a Debian package such as linux-source-6.12
              (default: the newest /usr/src/linux-source-*.tar.*)
  --fragment  the options to set (default: the sandbox's for this machine: sandbox.config beside this script, on arm64
              sandbox-arm64.config; lab.config is the kernel of the lab)
  --cache     where to keep the results (default: $XDG_CACHE_HOME/minivm or ~/.cache/minivm)
  --print-path  only print the path that the result has, or will have; exit code 1 if it isn't built yet
TEXT
}

die() { clear_bar; printf 'build.sh: %s\n' "$*" >&2; exit 1; }

# Progress: one line that rewrites itself in a terminal, else a line each 10 % or 15 s.
phase= shown=-1 shown_at=0
clear_bar() { if [ -t 2 ] && [ -n "$phase" ]; then printf '\r\033[K' >&2; fi; }
progress() { # PHASE PERCENT
  local percent=$(($2 > 100 ? 100 : $2))
  if [ -t 2 ]; then
    phase=$1
    printf '\r\033[K%-10s [%-40s] %3d %%' "$1" "$(printf '%*s' $((percent * 2 / 5)) '' | tr ' ' '#')" "$percent" >&2
  elif [ "$1" != "$phase" ] || ((percent / 10 > shown / 10)) || ((SECONDS - shown_at >= 15)); then
    printf 'build.sh: %s %d %%\n' "$1" "$percent" >&2
    phase=$1 shown=$percent shown_at=$SECONDS
  fi
}

# --- arguments

case $(uname -m) in aarch64) fragment=$HERE/sandbox-arm64.config ;; *) fragment=$HERE/sandbox.config ;; esac
source= cache=${XDG_CACHE_HOME:-$HOME/.cache}/minivm print_only=
while (($#)); do
  case $1 in
    --source | --fragment | --cache)
      [ $# -ge 2 ] && [ -n "$2" ] || die "$1 needs a value; see --help"
      declare "${1#--}=$2"
      shift 2
      ;;
    --print-path) print_only=yes; shift ;;
    -h | --help) usage; exit ;;
    *) die "unknown argument $1; see --help" ;;
  esac
done
[ -r "$fragment" ] || die "cannot read the fragment $fragment"
name=$(basename "$fragment" .config)
case $name in
  *-arm64) arch=arm64 image=Image cross=aarch64-linux-gnu- compiler='gcc-aarch64-linux-gnu libc6-dev-arm64-cross' ;;
  *) arch=x86 image=bzImage cross= compiler='gcc binutils' ;;
esac
# An arm64 machine needs no cross compiler for its own kernel.
if [ "$arch" = arm64 ] && [ "$(uname -m)" = aarch64 ]; then cross= compiler='gcc binutils'; fi

# --- the source: a tree, or a tarball that becomes one

if [ -z "$source" ]; then
  source=$(ls /usr/src/linux-source-*.tar.* 2>/dev/null | sort -V | tail -1 || true)
  [ -n "$source" ] || die "no Linux source in /usr/src: apt-get install linux-source-6.12 (or give --source)"
elif [ ! -e "$source" ]; then
  package=$source
  source=$(ls "/usr/src/$package".tar.* 2>/dev/null | tail -1 || true)
  [ -n "$source" ] || die "no file, folder or installed source package is called $package: apt-get install $package"
fi
source=$(realpath "$source")

# What tells two sources apart: the version of the Debian package that the tarball belongs to, else the tarball's hash;
# for a tree, the names, sizes and times of its files.
if [ -d "$source" ]; then
  [ -f "$source/Kbuild" ] && [ -f "$source/Makefile" ] || die "$source is not a Linux source tree"
  identity=tree:$(cd "$source" && find . -name .git -prune -o -type f -printf '%P %s %T@\n' | sort | sha256sum | cut -c1-16)
else
  package=$(basename "$source"); package=${package%.tar*}
  if [[ $source == /usr/src/* ]] && version=$(dpkg-query -W -f '${Version}' "$package" 2>/dev/null) && [ -n "$version" ]; then
    identity=$package:$version
  else
    identity=file:$(sha256sum <"$source" | cut -c1-16)
  fi
fi

# --- the key

# The fragment without its comments: rewording one of them builds nothing.
# `# since 6.9` and `# until 6.8` behind an option are no comments: they say which kernels have it.
options() { sed -nE 's/^(CONFIG_[A-Za-z0-9_]+=("[^"]*"|[^ #]+)) *(# (since|until) [0-9.]+)?.*/\1 \3/p' "$fragment" | sed 's/ *$//'; }
# Further flags of the compiler's, on a line `KCFLAGS=…`: make's variable of that name.
flags=$(sed -n 's/^KCFLAGS=//p' "$fragment")
stray=$(grep -nvE '^(#|$|KCFLAGS=[^#]+$|CONFIG_[A-Za-z0-9_]+=("[^"]*"|[^ #"]+)( +#.*)?$)' "$fragment" | head -1 || true)
[ -z "$stray" ] || die "$fragment: line ${stray%%:*} is no option: ${stray#*:}"
command -v "${cross}gcc" >/dev/null && command -v "${cross}ld" >/dev/null || die "no compiler for $arch: apt-get install $compiler"
key=$({ echo "$RECIPE $identity$flags"; options; "${cross}gcc" --version | head -1; "${cross}ld" --version | head -1; } | sha256sum | cut -c1-16)
shelf=$cache/kernel/$name
result=$shelf/$key

select_result() { # the link is replaced by a rename, so it always points to something whole
  if [ "$(readlink "$shelf/current" 2>/dev/null)" != "$key" ]; then
    ln -s "$key" "$shelf/.current.$$" && mv -T "$shelf/.current.$$" "$shelf/current"
  fi
  clear_bar
  printf '%s\n' "$result"
}

if [ -n "$print_only" ]; then
  printf '%s\n' "$result"
  [ -d "$result" ]
  exit
fi
if [ -d "$result" ]; then
  select_result
  exit
fi

# --- what the build needs

missing=
for pair in make:make flex:flex bison:bison bc:bc tar:tar xz:xz-utils flock:util-linux strip:binutils; do
  command -v "${pair%:*}" >/dev/null || missing+=" ${pair#*:}"
done
for kind in lz4:LZ4 zstd:ZSTD; do
  ! options | grep -q "^CONFIG_KERNEL_${kind#*:}=y" || command -v "${kind%:*}" >/dev/null || missing+=" ${kind%:*}"
done
echo '#include <gelf.h>' | gcc -E - >/dev/null 2>&1 || missing+=" libelf-dev"
[ -z "$missing" ] || die "programs are missing that the kernel's build needs: apt-get install$missing"

# --- one build at a time; what a killed one left goes away

mkdir -p "$shelf" "$cache/linux-src"
exec 9>"$cache/kernel/.lock" # make and its children hold it too: it outlives this script if they do
if ! flock -n 9; then
  printf 'build.sh: waiting for another build\n' >&2
  flock 9
  if [ -d "$result" ]; then
    select_result
    exit
  fi
fi
rm -rf "$cache"/kernel/.scratch.* "$cache"/linux-src/.unpack.* "$shelf"/.current.*
scratch=$cache/kernel/.scratch.$$
mkdir "$scratch"
child=
cleanup() {
  if [ -n "$child" ]; then
    kill -- "-$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  rm -rf "$scratch" "$cache/linux-src/.unpack.$$"
}
trap cleanup EXIT
trap 'clear_bar; exit 130' INT
trap 'clear_bar; exit 143' TERM HUP

# Runs a command in a process group of its own and shows how far its log has come: PHASE TOTAL PATTERN LOG CMD…
watched() {
  local phase_name=$1 total=$2 pattern=$3 log=$4 status=0 done_lines label
  shift 4
  set -m
  "$@" >"$log" 2>&1 </dev/null &
  child=$!
  set +m
  while kill -0 "$child" 2>/dev/null; do
    done_lines=$(grep -cE "$pattern" "$log" || true)
    label=$phase_name
    if [ "$phase_name" = compile ] && grep -qE '^  LD      (vmlinux|\.tmp_vmlinux)' "$log"; then label=link; fi
    progress "$label" $((done_lines * 100 / total))
    sleep 0.5
  done
  wait "$child" || status=$?
  child=
  return $status
}

printf 'build.sh: %s kernel from %s\n' "$name" "$identity" >&2
if [ -d "$source" ]; then
  tree=$source
else
  tree=$cache/linux-src/${identity/:/-}
  if [ ! -d "$tree" ]; then
    unpack=$cache/linux-src/.unpack.$$
    mkdir "$unpack"
    bytes=$(xz --robot --list "$source" 2>/dev/null | awk '$1 == "totals" { print $5 }')
    # Left out: what no x86-64 or arm64 kernel without devices compiles. It is two thirds of the tree.
    watched unpack $((${bytes:-1600000000} / 10240000 + 1)) checkpoint "$scratch/unpack.log" \
      tar -C "$unpack" --strip-components=1 --checkpoint=1000 --checkpoint-action=echo --no-same-owner \
      --exclude='*/Documentation/*.rst' --exclude='*/Documentation/*.txt' --exclude='*/Documentation/devicetree/*' \
      --exclude='*/drivers/gpu/*.[ch]' --exclude='*/drivers/net/ethernet/*.[ch]' --exclude='*/drivers/net/wireless/*.[ch]' \
      --exclude='*/drivers/media/*.[ch]' --exclude='*/drivers/staging/*.[ch]' --exclude='*/sound/*.[ch]' \
      --exclude='*/tools/testing/*' --exclude='*/arch/*/boot/dts/*.dts*' -xf "$source" ||
      die "cannot unpack $source: $(tail -1 "$scratch/unpack.log")"
    mv -T "$unpack" "$tree"
  fi
fi

# --- configure, and hold the fragment against what came out

progress configure 0
kernel=$(make -s -C "$tree" kernelversion 2>/dev/null) || die "$tree is not a Linux source tree"
at_most() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -1)" = "$1" ]; }
base=$(cut -d. -f1,2 <<<"$kernel")
while read -r option; do # a quoted value may have spaces
  if [[ $option =~ ^(.*[^ ])\ +\#\ (since|until)\ ([0-9.]+)$ ]]; then
    option=${BASH_REMATCH[1]}
    case ${BASH_REMATCH[2]} in
      since) at_most "${BASH_REMATCH[3]}" "$base" || continue ;;
      until) at_most "$base" "${BASH_REMATCH[3]}" || continue ;;
    esac
  fi
  printf '%s\n' "$option"
done < <(options) >"$scratch/fragment"

out=$scratch/out
mkdir "$out"
kbuild() {
  make -C "$tree" O="$out" ARCH="$arch" CROSS_COMPILE="$cross" KBUILD_BUILD_USER=minivm KBUILD_BUILD_HOST=minivm \
    KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_VERSION=1 KCFLAGS="$flags" "$@"
}
kbuild KCONFIG_ALLCONFIG="$scratch/fragment" allnoconfig >"$scratch/configure.log" 2>&1 ||
  die "cannot configure Linux $kernel: $(grep -m1 -E '\*\*\*|rror' "$scratch/configure.log")"
find "$tree" -name 'Kconfig*' -not -path '*/scripts/kconfig/tests/*' -print0 | xargs -0 cat |
  sed -nE 's/^[[:space:]]*(menu)?config[[:space:]]+([A-Za-z0-9_]+)[[:space:]]*$/CONFIG_\2/p' | sort -u >"$scratch/known"
wrong=
while IFS='=' read -r symbol value; do
  got=$(sed -n "s/^$symbol=//p" "$out/.config")
  if ! grep -qx "$symbol" "$scratch/known"; then
    wrong+="; $symbol: Linux $kernel has no such option"
  elif [ "${got:-n}" != "$value" ]; then
    wrong+="; $symbol=$value: came out as ${got:-n} (a dependency, or another option selects it)"
  fi
done <"$scratch/fragment"
[ -z "$wrong" ] || die "$(basename "$fragment"): ${wrong#; }"

# --- build

# How many steps make will print: what the last build of this fragment printed, else a figure close to all fragments'.
steps=$(cat "$shelf/.steps" 2>/dev/null || echo 1600)
if ! watched compile "$steps" '^  [A-Z]' "$scratch/build.log" kbuild -j"$(nproc)" vmlinux "$image"; then
  cp "$scratch/build.log" "$shelf/failed.log"
  clear_bar
  { grep -E 'error|Error|\*\*\*' "$scratch/build.log" | head -8; tail -4 "$scratch/build.log"; } >&2
  die "Linux $kernel doesn't build; the whole log is $shelf/failed.log"
fi
progress link 100

stage=$scratch/result
mkdir "$stage"
"${cross}strip" -s -o "$stage/vmlinux" "$out/vmlinux"
cp "$out/arch/$arch/boot/$image" "$out/System.map" "$scratch/build.log" "$stage/"
cp "$out/.config" "$stage/config"
grep -cE '^  [A-Z]' "$scratch/build.log" >"$shelf/.steps"
mv -T "$stage" "$result"
[ -t 2 ] || printf 'build.sh: built Linux %s in %d s\n' "$kernel" "$SECONDS" >&2
select_result
