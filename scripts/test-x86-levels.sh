#!/usr/bin/env bash
# Runs the tests of subbyte-core on older x86 processors under qemu-user: Haswell (AVX2 is the best level) and Nehalem
# (no AVX: the scalar reference alone). AVX-512 is tested natively by `cargo test`. For Debian 12; installs qemu-user
# where it is missing, so that needs root once.
#
#   scripts/test-x86-levels.sh [ARGUMENTS OF CARGO TEST]     e.g. --test levels
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v qemu-x86_64 >/dev/null; then
    [ "$(id -u)" -eq 0 ] || { echo "run this once as root, to install qemu-user" >&2; exit 1; }
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user >/dev/null
fi
export SUBBYTE_TEST_ROUNDS="${SUBBYTE_TEST_ROUNDS:-4}" SUBBYTE_TEST_MUTATIONS="${SUBBYTE_TEST_MUTATIONS:-2000}"
if [ $# -eq 0 ]; then
    # The mutation suite has limits in milliseconds, which say nothing under emulation.
    set -- --lib --test float --test golden --test levels
fi
for cpu in Haswell Nehalem; do
    echo "== $cpu" >&2
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="qemu-x86_64 -cpu $cpu" \
        cargo test --release --target x86_64-unknown-linux-gnu -p subbyte-core "$@" -- --nocapture
done
