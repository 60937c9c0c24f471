#!/usr/bin/env bash
# Prunes the digits CNN by 40 % with repair: bash run.sh [FOLDER for the results, default a temporary one]
set -euo pipefail

samples=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$(mktemp -d)}
mkdir -p "$out"

# ONNXPRUNE may be several words, so it is not quoted.
${ONNXPRUNE:-onnxprune} "$samples/models/digits_cnn.onnx" \
    --method coreset-channel --ratio 0.4 \
    --data "$samples/data/digits_calibration.npz" \
    --test-data "$samples/data/digits_test.npz" --labels "$samples/data/digits_test_labels.npy" \
    --output "$out/digits_cnn.pruned.onnx" --json "$out/report.json"

echo "The pruned model and report.json are in $out"
