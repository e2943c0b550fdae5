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
mariadbd:mariadb-server
gcc:gcc
qemu-system-x86_64:qemu-system-x86
xz:xz-utils
pigz:pigz
zstd:zstd
fio:fio
sg_inq:sg3-utils
blkzone:util-linux
losetup:mount
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

# The tests start a registry and a database of their own; the packages' services
# are not wanted.
for service in docker-registry mariadb; do
	case $missing in
	*"$service"*) systemctl disable --now "$service" >/dev/null 2>&1 || true ;;
	esac
done
