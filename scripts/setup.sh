#!/usr/bin/env bash
# Sees to what building and testing need on a Debian-like machine: a C compiler and cmake for
# aws-lc, Go for the conformance program, Rust, iproute2 for networks. Installs what apt has, as root;
# names the rest.
# Running it again changes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=()
want() { # COMMAND PACKAGE
    command -v "$1" >/dev/null || packages+=("$2")
}
want cc gcc
want make make
want cmake cmake
want git git
want python3 python3
want ip iproute2

if [ "${#packages[@]}" -gt 0 ]; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "setup: install these first: ${packages[*]}" >&2
        exit 1
    fi
    echo "setup: installing ${packages[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
fi

# A foreign STUN client, a database server and a clock that jumps, for tests that say what they skip
# without them. Where systemd runs, such packages may start servers, so there they are left to
# whoever wants them.
extra() { # PACKAGE
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null && [ ! -d /run/systemd/system ] || return 0
    echo "setup: installing $1"
    { timeout 120 apt-get update -qq \
        && DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -qq -y --no-install-recommends "$1" >/dev/null; } \
        || echo "setup: $1 does not install here"
}
command -v turnutils_stunclient >/dev/null || extra coturn
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || extra postgresql
compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || extra libfaketime

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
if ! command -v cargo >/dev/null; then
    echo "setup: cargo is missing; install Rust $wanted or newer with rustup" >&2
    exit 1
fi
found=$(rustc --version | cut -d' ' -f2)
if [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n1)" != "$wanted" ]; then
    echo "setup: Rust $found is older than $wanted; run rustup update" >&2
    exit 1
fi

if command -v go >/dev/null; then
    echo "setup: rust $found, $(go version | cut -d' ' -f3), $(cmake --version | head -n1)"
else
    # The tests say what they skip without it.
    echo "setup: rust $found, no Go: the conformance tests will be skipped"
fi
