#!/bin/bash
# staged.sh FOLDER WORD...: copies FOLDER into memory, and runs its program `bench` there with the copy's path and WORDs.
#
# Requests to a shared directory would add the outer machine's latency to times of the instruction clock. So /tmp is in
# memory as well: runtimes make files with random names in it, and each lookup of a new name is a request.
set -euo pipefail
dir=$(mktemp -d /dev/shm/bench.XXXXXX)
trap 'rm -rf "$dir"' EXIT
cp -a "$1/." "$dir"
unshare --mount bash -c 'mount -t tmpfs none /tmp && exec "$@"' bash "$dir/bench" "$dir" "${@:2}"
