#!/bin/bash
# systemd.sh DIR COMMAND [ARG...]: runs a command as a service of a new systemd, which is PID 1 of its own namespaces.
# The service's standard error goes to that of this script. SIGTERM ends systemd and the service.
#
# DIR/unshare.pid contains the process ID of systemd's parent.
set -euo pipefail
dir=$1
shift
tree=/sys/fs/cgroup/systemd-$$
mkdir "$tree"
read -ra controllers <"$tree/../cgroup.controllers"
for controller in "${controllers[@]}"; do
    echo "+$controller" >"$tree/../cgroup.subtree_control"
done
mkfifo "$dir/output"
{
    echo '#!/bin/bash'
    printf 'exec'
    printf ' %q' "$@"
    printf ' 2>%q\n' "$dir/output"
} >"$dir/service.sh"

# What container managers prepare (systemd.io/CONTAINER_INTERFACE).
prepare='
set -e
umount /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
echo $$ >/sys/fs/cgroup/cgroup.procs
mount -t tmpfs -o mode=755 none /run
mkdir -p /run/systemd/system
cat >/run/systemd/system/engine.service <<END
[Unit]
DefaultDependencies=no
[Service]
Delegate=yes
KillMode=process
ExecStart=/bin/bash $0/service.sh
END
container=other exec /lib/systemd/systemd --system --unit=engine.service'
(
    echo "$BASHPID" >"$tree/cgroup.procs"
    echo "$BASHPID" >"$dir/unshare.pid"
    # systemd's parent must leave its cgroup, because only leaves of a tree with controllers can contain processes.
    leave='echo $$ >/sys/fs/cgroup/cgroup.procs; exec unshare --fork --kill-child --pid --mount-proc bash -c "$1" "$0"'
    exec unshare --mount --cgroup --uts bash -c "$leave" "$dir" "$prepare"
) >"$dir/systemd.log" 2>&1 &
systemd=$!

end() {
    kill -KILL "$systemd" 2>/dev/null || true
    # Kills all processes of the tree. The kernel removes them one after the other.
    echo 1 >"$tree/cgroup.kill"
    wait
    find "$tree" -depth -type d -exec rmdir {} +
}
trap 'end; exit' TERM
cat "$dir/output" >&2 &
wait "$systemd"
end
