#!/usr/bin/env bash
# Rebuilds the eBPF objects and compares them with the committed ones, byte for byte.
set -euo pipefail
cd "$(dirname "$0")/.."

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
if [ "$(scripts/ebpf-build.sh --digest)" != "$(cat ebpf/objects/digest)" ]; then
    echo "ebpf-check: the sources have changed since the objects were built; run scripts/ebpf-build.sh" >&2
    exit 1
fi
scripts/ebpf-build.sh "$fresh" >/dev/null
for object in relay reuseport lab flood again; do
    cmp "ebpf/objects/$object.o" "$fresh/$object.o"
done
echo "ebpf-check: ok; the objects are what their sources make"
