#!/bin/bash
# rootless.sh DIR: prepares a host for Podman of an ordinary user, the one that a rootless engine's cases use. DIR is the
# engine's directory; the user's home and runtime directories are made in it.
#
# Prints the user's ID.
set -euo pipefail
dir=$1
name=vmm-engines
# useradd gives the user ranges of subordinate IDs.
id -u "$name" >/dev/null 2>&1 || useradd --no-create-home --home-dir / --shell /bin/sh "$name"
grep -q "^$name:" /etc/subuid || echo "$name:200000:65536" >>/etc/subuid
grep -q "^$name:" /etc/subgid || echo "$name:200000:65536" >>/etc/subgid
# A host without udev gives these devices to root alone.
for device in /dev/kvm /dev/net/tun /dev/fuse /dev/null; do
    setpriv --reuid "$name" --clear-groups test -w "$device" || chmod 666 "$device"
done
chmod 711 "$dir"
mkdir "$dir/home" "$dir/xdg"
chmod 700 "$dir/home" "$dir/xdg"
chown "$name:" "$dir/home" "$dir/xdg"
id -u "$name"
