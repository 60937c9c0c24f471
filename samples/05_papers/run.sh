#!/usr/bin/env bash
# Reruns two experiments of the papers on the digits MLP: bash run.sh [FOLDER for the results, default a temporary one]
set -euo pipefail

samples=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$(mktemp -d)}
mkdir -p "$out"

for experiment in l-obs-fig2 bounds-report-card; do
    # ONNXPRUNE may be several words, so it is not quoted.
    ${ONNXPRUNE:-onnxprune} papers "$experiment" \
        --model "$samples/models/digits_lenet300.onnx" \
        --data "$samples/data/digits_calibration.npz" \
        --test-data "$samples/data/digits_test.npz" --labels "$samples/data/digits_test_labels.npy" \
        --seeds 1 --picture "$out/$experiment.svg" --json "$out/$experiment.json"
done

echo "The pictures and numbers are in $out"
