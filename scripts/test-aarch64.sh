#!/usr/bin/env bash
# Builds the tests of subbyte-core for aarch64 and runs them under qemu-user: the NEON level against the scalar reference
# and the golden files. For Debian 12 on another architecture; installs what is missing, so that needs root once.
#
#   scripts/test-aarch64.sh [ARGUMENTS OF CARGO TEST]     e.g. --test levels
#
# SUBBYTE_QEMU_CPU names another processor for qemu (cortex-a53: no dot products; default: everything qemu has).
# SUBBYTE_TEST_ROUNDS and SUBBYTE_TEST_MUTATIONS are lowered here, as emulation is slow; set them for a deeper run.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu

install() {
    local missing=()
    for package in "$@"; do
        dpkg-query -W -f='${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    echo "installing ${missing[*]}" >&2
    [ "$(id -u)" -eq 0 ] || { echo "run this once as root, to install: ${missing[*]}" >&2; exit 1; }
    dpkg --add-architecture arm64
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
# The standard library for the target: rustup's where it is installed, else Debian's with Debian's compiler.
if ! rustup target list --installed 2>/dev/null | grep -qx "$target"; then
    install rustc-web libstd-rust-web-dev:arm64
    export RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc
fi

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# Without -L: the first thread would spin for ever. The tests are linked statically instead of looking for a sysroot.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 ${SUBBYTE_QEMU_CPU:+-cpu $SUBBYTE_QEMU_CPU}"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"
export SUBBYTE_TEST_ROUNDS="${SUBBYTE_TEST_ROUNDS:-12}" SUBBYTE_TEST_MUTATIONS="${SUBBYTE_TEST_MUTATIONS:-2000}"

if [ $# -eq 0 ]; then
    # The mutation suite has limits in milliseconds, which say nothing under emulation.
    set -- --lib --test float --test golden --test levels
fi
cargo test --release --target "$target" -p subbyte-core "$@" -- --nocapture
