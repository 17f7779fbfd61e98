#!/bin/bash
# network.sh BENCH BUNDLE KERNEL INITRAMFS RUNS GROUPS VMM [OTHER]: runs the bench of networks with all its files in
# memory, in a network namespace of its own, which ends with everything that the bench lays. OTHER is another vmm program,
# which is measured in the same run.
#
# Reading a shared directory would add the outer machine's latency to times of the instruction clock.
set -euo pipefail
bench=$1 bundle=$2 kernel=$3 initramfs=$4 runs=$5 groups=$6 vmm=$7 other=${8:-}
# Counters and trace events of KVM.
mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug
mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing
dir=$(mktemp -d /dev/shm/network.XXXXXX)
trap 'rm -rf "$dir"' EXIT
cp "$bench" "$dir/bench"
cp "$vmm" "$dir/vmm"
cp -a "$bundle" "$dir/bundle"
cp "$kernel" "$dir/kernel"
cp "$initramfs" "$dir/initramfs"
[ -z "$other" ] || cp "$other" "$dir/other"
unshare --net "$dir/bench" "$dir" "$runs" "$groups"
