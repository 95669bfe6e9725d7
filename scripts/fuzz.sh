#!/usr/bin/env bash
# Runs each fuzz target for a while: scripts/fuzz.sh [SECONDS] [TARGET...]. Findings stay in
# tests/fuzz/artifacts and end the run; the seeds are also replayed by the ordinary tests.
set -euo pipefail
cd "$(dirname "$0")/../tests"

seconds=${1:-20}
shift || true

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzz: installing cargo-fuzz"
    cargo install --quiet --locked --debug cargo-fuzz --version 0.13.2
fi

targets=("$@")
if [ "${#targets[@]}" -eq 0 ]; then
    for file in fuzz/fuzz_targets/*.rs; do
        targets+=("$(basename "$file" .rs)")
    done
fi
for target in "${targets[@]}"; do
    echo "fuzz: $target for $seconds s"
    # The sanitizers are compiler flags that stable has, too, under this variable.
    RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" -- -max_total_time="$seconds" -verbosity=0 -print_funcs=0 -print_final_stats=1
done
