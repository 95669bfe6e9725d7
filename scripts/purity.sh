#!/usr/bin/env bash
# Proves that `wire` and `proto` need nothing of an operating system: both are built for wasm32 on
# `core` and `alloc` alone, with no `std` to link, and what the linked whole then imports must be
# the allocator and the panic handler, which every program brings itself.
#
# Sources of the standard library come with Debian's rustc-web; the toolchain link is a folder of
# links, so that nothing else on the machine changes.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}/purity
mkdir -p "$target"
target=$(cd "$target" && pwd)

if ! dpkg -s rustc-web rust-web-src >/dev/null 2>&1; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "purity: install rustc-web and rust-web-src first" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends rustc-web rust-web-src >/dev/null
fi

mkdir -p "$target/toolchain/bin" "$target/toolchain/lib"
ln -sfn "$(dpkg -L rustc-web | grep '/bin/rustc$')" "$target/toolchain/bin/rustc"
rustup toolchain link purity "$target/toolchain"
trap 'rustup toolchain uninstall purity >/dev/null 2>&1 || true' EXIT

echo "purity: building wire and proto on core and alloc for wasm32"
# A toolchain without cargo borrows that of another one and says so.
RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$target/build" \
    rustup run purity cargo build --release --target wasm32-unknown-unknown -Z build-std=core,alloc \
    -p wire -p proto

out=$target/build/wasm32-unknown-unknown/release
if ls "$out"/deps/libstd-*.rlib >/dev/null 2>&1; then
    echo "purity: std was built" >&2
    exit 1
fi

lld=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/rust-lld
# Whatever stays undefined is what the crates would import from their surroundings.
"$lld" -flavor wasm --no-entry --no-gc-sections --error-limit=0 -o "$target/whole.wasm" \
    --whole-archive "$out"/libwire.rlib "$out"/libproto.rlib --no-whole-archive "$out"/deps/*.rlib \
    >"$target/link.log" 2>&1 || true
imports=$(sed -n 's/.*undefined symbol: //p' "$target/link.log" | sort -u)
foreign=$(grep -vE '__rust_|__rustc|rust_begin_unwind|rust_eh_personality' <<<"$imports" || true)
if [ -z "$imports" ]; then
    # Allocation is in every build of proto: a link that misses nothing linked nothing.
    echo "purity: the link showed no allocator; see $target/link.log" >&2
    exit 1
fi
if [ -n "$foreign" ]; then
    echo "purity: these come from outside core and alloc:" >&2
    echo "$foreign" >&2
    exit 1
fi
echo "purity: ok; left to the program: $(tr '\n' ' ' <<<"$imports")"
