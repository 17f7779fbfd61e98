#!/bin/bash
# streams.sh BENCH ROUND_TRIPS VMM BUNDLE KERNEL AGENT ECHO MIB RUNS COUNT: runs the two benches of the link to the
# agent. Each prints its report on one line.
set -euo pipefail
# No template is made beside the containers that are measured.
export VMM_TEMPLATE_MAKE=never
bench=$1 round_trips=$2 vmm=$3 bundle=$4 kernel=$5 agent=$6 echo=$7 mib=$8 runs=$9 count=${10}
# Counters and trace events of KVM.
mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug
mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing
dir=$(mktemp -d /dev/shm/streams.XXXXXX)
trap 'rm -rf "$dir"' EXIT
cp "$vmm" "$dir/vmm"
cp -a "$bundle" "$dir/bundle"
mkdir "$dir/work"
"$round_trips" "$kernel" "$agent" "$echo" "$dir/bundle/rootfs" "$count"
"$bench" "$dir/vmm" "$dir/bundle" "$dir/work" "$mib" "$runs"
