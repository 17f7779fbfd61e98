#!/bin/bash
# cgroup1.sh COMMAND [ARG...]: runs a command where all of the kernel's controllers are version 1's, as older hosts have them.
#
# A controller changes over while no cgroup but the root has it, so that nothing may have used it since the machine started.
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
# As systemd has them: each controller has its own name, too.
for pair in cpu,cpuacct net_cls,net_prio; do
    ln -s "$pair" "/sys/fs/cgroup/${pair%,*}"
    ln -s "$pair" "/sys/fs/cgroup/${pair#*,}"
done
exec "$@"
