#!/usr/bin/env bash
# The extension on 64-bit Arm, in Debian's root for it, whose programs QEMU runs:
#   tests/arm/run.sh FOLDER [pytest's arguments; the operations' tests without any]
# The root is made in FOLDER, or is there already. Results are those of a processor; speeds are not.
set -euo pipefail
root=$(realpath -m "${1:?must be a folder for the root}")
shift
cd "$(dirname "$0")/../.."

which debootstrap proot qemu-aarch64-static aarch64-linux-gnu-gcc > /dev/null || {
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        debootstrap proot qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross \
        libgomp1-arm64-cross > /dev/null
}
inside() {
    proot -q qemu-aarch64-static -r "$root" -0 -b /dev -b /proc -b /sys -b "$PWD:/src" -w /src \
        /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive PYTHONPATH=/opt/packages HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis "$@"
}
[ -e "$root/usr/bin/python3" ] || {
    # unpacked here, not configured: debootstrap's second stage takes twenty minutes under QEMU
    debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,libgomp1 bookworm "$root"
    for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb --extract "$package" "$root"; done
}
# wheels need no network within the root
[ -e "$root/opt/packages/numpy" ] || python3 -m pip install --target "$root/opt/packages" \
    --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --python-version 3.11 \
    --only-binary=:all: numpy setuptools pytest hypothesis threadpoolctl
# compiled here, which is faster, by a Python of the root's version; its file's name has the processor
CC=aarch64-linux-gnu-gcc LDSHARED="aarch64-linux-gnu-gcc -shared" python3.11 setup.py --quiet build_ext \
    --build-temp "$root/opt/build" --build-lib "$root/opt/build"
cp "$root"/opt/build/reformer_c/_core.*.so reformer_c/_core.cpython-311-aarch64-linux-gnu.so
[ $# -gt 0 ] || set -- -q tests/ops
inside python3 -m pytest "$@"
