#!/bin/bash
# tests.sh PROGRAM TESTS [ARG...]: runs a program of whole-VM tests in the emulated KVM host.
#
# The tests use files on ext4, because the host's root is an overlay on tmpfs, which has no user xattrs. They may set its
# clock (VMM_TEST_SET_CLOCK). Machines have one vCPU unless a test asks for more: as many tests run at a time as the host
# has CPUs.
set -euo pipefail
program=$1
shift
image=/dev/shm/tests.ext4
truncate -s 3G "$image"
mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=1,nodiscard "$image"
mkdir -p /mnt/tests
mount -o loop "$image" /mnt/tests
cp "$program" /mnt/tests/vmm
export TMPDIR=/mnt/tests VMM_PROGRAM=/mnt/tests/vmm VMM_TEST_SET_CLOCK=1 VMM_MAX_CPUS=1
exec "$@"
