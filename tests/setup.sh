#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs what the tests and the demo need beyond Go, from Debian's packages.
# Does nothing where everything is there already.
set -eu

# program:package
wanted='
runc:runc
docker-registry:docker-registry
debootstrap:debootstrap
mkfs.ext4:e2fsprogs
mkfs.xfs:xfsprogs
mkfs.erofs:erofs-utils
setfattr:attr
setcap:libcap2-bin
qemu-system-x86_64:qemu-system-x86
xz:xz-utils
gcc:gcc
'

PATH=$PATH:/usr/sbin:/sbin
missing=
for w in $wanted; do
	command -v "${w%%:*}" >/dev/null 2>&1 || missing="$missing ${w##*:}"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
	echo "setup: install these packages first:$missing" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "setup: run as root, or install these packages first:$missing" >&2
	exit 1
fi

echo "setup: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends $missing >/dev/null

# The tests start a registry of their own; the package's service is not wanted.
case $missing in
*docker-registry*) systemctl disable --now docker-registry >/dev/null 2>&1 || true ;;
esac
