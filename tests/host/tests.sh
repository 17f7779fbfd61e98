#!/bin/bash
# vm-tests.sh PROGRAM GUEST DEBIAN TESTS [ARG...]: runs the whole-VM tests in the emulated KVM host.
#
# The host's root is an overlay on tmpfs, which has no user xattrs; the tests' files go to a real ext4 instead.
set -euo pipefail
program=$1 guest=$2 debian=$3
shift 3
image=/dev/shm/tests.ext4
truncate -s 3G "$image"
mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=1,nodiscard "$image"
mkdir -p /mnt/tests
mount -o loop "$image" /mnt/tests
cp "$program" /mnt/tests/vmm
export TMPDIR=/mnt/tests VMM_PROGRAM=/mnt/tests/vmm VMM_TEST_GUEST=$guest VMM_TEST_DEBIAN=$debian
exec "$@"
