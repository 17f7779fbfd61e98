#!/bin/bash
# files.sh BENCH BUNDLE RUNS GROUPS VMM [OTHER]: runs the bench of files with all its files in memory. OTHER is another
# vmm program, which is measured in the same run.
#
# Reading a shared directory would add the outer machine's latency to times of the instruction clock.
set -euo pipefail
# No template is made beside the containers that are measured.
export VMM_TEMPLATE_MAKE=never
bench=$1 bundle=$2 runs=$3 groups=$4 vmm=$5 other=${6:-}
# Counters of KVM.
mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug
dir=$(mktemp -d /dev/shm/files.XXXXXX)
trap 'rm -rf "$dir"' EXIT
cp "$bench" "$dir/bench"
cp "$vmm" "$dir/vmm"
cp -a "$bundle" "$dir/bundle"
[ -z "$other" ] || cp "$other" "$dir/other"
"$dir/bench" "$dir/bundle" "$dir/container" "$runs" "$groups" runc=runc vmm="$dir/vmm" ${other:+other="$dir/other"}
