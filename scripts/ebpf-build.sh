#!/usr/bin/env bash
# Builds the eBPF objects into ebpf/objects/ (or the folder given) with a digest of what they were
# made of. Needs scripts/ebpf-toolchain.sh once. The same sources give the same bytes wherever they
# and the tools lie, as long as the tools are Debian's.
#
# `--digest` only prints the digest of the sources as they are. `--debug` builds programs that write a
# line for each packet to a served port, for a dataplane with the feature `ebpf-log`; they stay in the
# target folder.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

# What the objects are made of: changes elsewhere in `wire` leave them alone.
digest() {
    cat ebpf/Cargo.toml ebpf/Cargo.lock ebpf/build.rs ebpf/src/*.rs dataplane/wire/src/packet.rs \
        dataplane/wire/src/packet/*.rs dataplane/wire/src/maps/*.rs \
        dataplane/wire/src/{lib,maps,stun,drop,key}.rs dataplane/wire/Cargo.toml \
        scripts/ebpf-{build,toolchain}.sh |
        sha256sum | cut -d' ' -f1
}
if [ "${1:-}" = --digest ]; then
    digest
    exit
fi

target=${CARGO_TARGET_DIR:-target}/ebpf
features=()
if [ "${1:-}" = --debug ]; then
    features=(--features log)
    target=$target-debug
    set -- "$target/objects"
fi
out=${1:-ebpf/objects}
mkdir -p "$out"
out=$(cd "$out" && pwd)
tools=${PERIGEE_EBPF_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/perigee-ebpf}
if [ ! -x "$tools/bin/bpf-linker" ] || [ ! -e "$tools/rustc" ]; then
    echo "ebpf-build: run scripts/ebpf-toolchain.sh first" >&2
    exit 1
fi
tools=$(cd "$tools" && pwd)
rustc=$(readlink -f "$tools/rustc")
# Not the proxy of rustup, which puts the LLVM of its own toolchain in front.
cargo=$(rustup which cargo 2>/dev/null || command -v cargo)

sysroot=$("$rustc" --print sysroot)
library=$sysroot/lib/rustlib/src/rust
"$cargo" fetch --quiet --locked --manifest-path ebpf/Cargo.toml
flags=(--cfg=bpf_target_arch=\"x86_64\" -Cdebuginfo=2 -Clink-arg=--btf
    "--remap-path-prefix=$root=/perigee"
    "--remap-path-prefix=$library=/rust"
    "--remap-path-prefix=$(readlink -f "$library/library" | sed 's|/library$||')=/rust")
# One level below, because the folder's name is that of the mirror.
for source in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
    flags+=("--remap-path-prefix=$source=/crates")
done
encoded=$(printf '%s\x1f' "${flags[@]}")

env -u RUSTFLAGS -u RUSTUP_TOOLCHAIN RUSTC="$rustc" RUSTC_BOOTSTRAP=1 LD_LIBRARY_PATH="$tools/lib" \
    PATH="$tools/bin:$PATH" CARGO_TARGET_DIR="$target" CARGO_ENCODED_RUSTFLAGS="${encoded%$'\x1f'}" \
    "$cargo" build --quiet --locked --release --manifest-path ebpf/Cargo.toml --bins \
    "${features[@]}" --target bpfel-unknown-none -Z build-std=core

strip=$(command -v llvm-strip || command -v llvm-strip-14)
for object in relay reuseport lab flood again; do
    # Leaves BTF, the types of maps and programs, which the kernel and bpftool read, but not which
    # instruction is of which line: that would be half of it.
    "$strip" --strip-debug --remove-section=.BTF.ext --remove-section=.rel.BTF.ext -o "$out/$object.o" "$target/bpfel-unknown-none/release/$object"
done
digest >"$out/digest"
(cd "$out" && wc -c relay.o reuseport.o lab.o flood.o again.o)
