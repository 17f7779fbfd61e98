#!/bin/bash
# boot.sh BENCH VMM BUNDLE KERNEL INITRAMFS RUNS [OTHER]: runs the boot bench with all its files in memory. OTHER is
# another vmm program, which is measured in the same run.
#
# Reading a shared directory would add the outer machine's latency to times of the instruction clock.
set -euo pipefail
bench=$1 vmm=$2 bundle=$3 kernel=$4 initramfs=$5 runs=$6 other=${7:-}
dir=$(mktemp -d /dev/shm/boot.XXXXXX)
trap 'rm -rf "$dir"' EXIT
cp "$bench" "$dir/bench"
cp "$vmm" "$dir/vmm"
cp -a "$bundle" "$dir/bundle"
cp "$kernel" "$dir/kernel"
cp "$initramfs" "$dir/initramfs"
[ -z "$other" ] || cp "$other" "$dir/other"
"$dir/bench" "$dir/vmm" "$dir/bundle" "$dir/kernel" "$dir/initramfs" "$runs" ${other:+"$dir/other"}
