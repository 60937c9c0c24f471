#!/usr/bin/env bash
# Runs the step of prune.yml here, once to pass and once to fail: bash check.sh [FOLDER for the results, default a temporary one]
set -euo pipefail

samples=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$(mktemp -d)}
mkdir -p "$out"

# gated NAME OPTION...: prunes under the gates of prune.yml and prints the exit code. ONNXPRUNE may be several words: not quoted.
gated() {
    local name=$1 code=0
    shift
    ${ONNXPRUNE:-onnxprune} "$samples/models/digits_cnn.onnx" --method coreset-channel "$@" \
        --data "$samples/data/digits_calibration.npz" \
        --test-data "$samples/data/digits_test.npz" --labels "$samples/data/digits_test_labels.npy" \
        --output "$out/$name.onnx" \
        --fail-if 'top1_agreement<0.95' \
        --fail-if 'accuracy_drop>0.02' \
        --summary "$out/$name.md" >&2 || code=$?
    echo "$code"
}

# expect CODE GOT WHAT
expect() {
    if [ "$2" -ne "$1" ]; then
        echo "$3: exit code $2 where $1 was expected" >&2
        exit 1
    fi
    echo "$3: exit code $2, as it should be"
}

repaired=$(gated repaired --ratio 0.4)
expect 0 "$repaired" "40 % pruned with repair"

unrepaired=$(gated unrepaired --ratio 0.6 --repair none)
expect 1 "$unrepaired" "60 % pruned without repair"

echo "The summaries are in $out"
