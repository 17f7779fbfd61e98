#!/bin/bash
# cgroup1.sh COMMAND [ARG...]: runs a command with all controllers in cgroups of version 1, as on older hosts.
#
# A controller can change its version only while no cgroup except the root uses it, so this must run before other
# programs that use cgroups.
set -euo pipefail
read -ra controllers </sys/fs/cgroup/cgroup.subtree_control
for controller in "${controllers[@]}"; do
    echo "-$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
umount /sys/fs/cgroup
mount -t tmpfs -o mode=755 none /sys/fs/cgroup
for tree in cpuset cpu,cpuacct blkio memory devices freezer net_cls,net_prio perf_event hugetlb pids; do
    mkdir "/sys/fs/cgroup/$tree"
    mount -t cgroup -o "$tree" none "/sys/fs/cgroup/$tree"
done
# As systemd does: links with the name of each controller.
for pair in cpu,cpuacct net_cls,net_prio; do
    ln -s "$pair" "/sys/fs/cgroup/${pair%,*}"
    ln -s "$pair" "/sys/fs/cgroup/${pair#*,}"
done
exec "$@"
