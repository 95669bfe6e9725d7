#!/usr/bin/env bash
# Sets up what is missing and runs every test of the workspace. Skips are printed as they happen;
# PERIGEE_REQUIRE=go,uring turns those into failures, PERIGEE_SLOW=1 adds the tests that take
# minutes. Arguments go to cargo test.
set -euo pipefail
case "${1:-}" in
-h | --help)
    sed -n '2,/^set /{s/^# //p}' "$0"
    exit 0
    ;;
esac
cd "$(dirname "$0")/.."

scripts/setup.sh
# The system tests start this program; building it here keeps its output visible.
cargo build --release -p dataplane
cargo test --workspace --no-fail-fast "$@"
