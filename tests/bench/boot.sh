#!/bin/bash
# boot.sh BENCH VMM BUNDLE KERNEL INITRAMFS RUNS [OTHER]: runs the boot bench with everything it starts in memory. OTHER is
# another vmm program, which is measured in the same run.
#
# A file that is read from a shared folder while the instruction clock runs would put the machine's own latency into it.
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
