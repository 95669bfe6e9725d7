#!/usr/bin/env bash
# Sees to what building the eBPF objects needs, in a folder of its own (PERIGEE_EBPF_TOOLS, by
# default under the user's cache): Debian's rustc-web with the library sources of the very same
# version, and the linker that borrows its LLVM. Only these make the committed bytes.
#
# With PERIGEE_EBPF_TOOLCHAIN=nightly it takes that rustup toolchain with its rust-src instead, which
# serves for working on the programs. The linker fits LLVM 22: Rust 1.95 to 1.98.
# Running it again changes nothing.
set -euo pipefail

linker=0.10.4
tools=${PERIGEE_EBPF_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/perigee-ebpf}
toolchain=${PERIGEE_EBPF_TOOLCHAIN:-debian}
mkdir -p "$tools/bin" "$tools/lib"

if [ "$toolchain" = debian ]; then
    if ! dpkg -s rustc-web rust-web-src >/dev/null 2>&1; then
        if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
            echo "ebpf-toolchain: install rustc-web and rust-web-src first" >&2
            exit 1
        fi
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends rustc-web rust-web-src >/dev/null
    fi
    rustc=$(dpkg -L rustc-web | grep '/bin/rustc$')
    # Alone in its folder: the linker takes the first LLVM it meets, and the system has others.
    llvm=$(dpkg -L libllvm22 | grep '/libLLVM\.so\.22\.1$')
else
    rustup component add rust-src --toolchain "$toolchain"
    rustc=$(rustup which rustc --toolchain "$toolchain")
    llvm=$(find "$(dirname "$rustc")/../lib" -maxdepth 1 -name 'libLLVM*' | head -n1)
fi
rm -f "$tools"/lib/libLLVM*
ln -sfn "$rustc" "$tools/rustc"
ln -sfn "$llvm" "$tools/lib/"

if [ "$("$tools/bin/bpf-linker" --version 2>/dev/null)" != "bpf-linker $linker" ]; then
    # Its work is done in LLVM, so that a debug build is as fast and made in a third of the time.
    CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --debug --locked bpf-linker --version "$linker" --root "$tools"
fi
if ! command -v llvm-strip >/dev/null && ! command -v llvm-strip-14 >/dev/null; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "ebpf-toolchain: install llvm first, for llvm-strip" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends llvm >/dev/null
fi
echo "ebpf-toolchain: $("$tools/rustc" --version), bpf-linker $linker, in $tools"
