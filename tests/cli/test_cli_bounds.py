"""`onnxprune bounds`: text and JSON over the real library and the bundled model; errors in one line."""

import json
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[2] / "samples" / "models" / "digits_lenet300.onnx"


def test_it_shows_layers_the_network_and_the_theorems(run):
    result = run("bounds", MODEL, "--ratio", "0.3")
    assert result.exit_code == 0, result.stderr
    for text in ("/fc2/Gemm", "9,000", "the smallest 30.0 %", "logits: off by at most", "of a norm of at most", "Theorem 1",
                 "outside the theorem's regime: its layers have biases"):  # fmt: skip
        assert text in result.stdout


def test_json_alone(run):
    found = json.loads(run("bounds", MODEL, "--epsilon", "1", "--delta", "0.1", "--json", "-").stdout)
    assert found["epsilon"] == 1
    assert found["delta"] == 0.1
    assert 0 < found["ratio"] < 1
    (output,) = found["outputs"]
    assert 0.9 < output["error"] <= 1 < output["norm"]
    layer = found["layers"][1]
    assert layer["weight_shape"] == [100, 300]
    assert sum(layer["histogram"]) == layer["weights"] == 30000
    assert layer["pruned"] == pytest.approx(found["ratio"] * 30000, abs=1)
    assert [says["error"] for says in found["theorems"]] == [None, None]
    assert all(says["outside"] for says in found["theorems"])


def test_a_larger_ball_has_larger_errors(run):
    one, ten = (json.loads(run("bounds", MODEL, "--radius", r, "--json", "-").stdout)["outputs"][0]["error"] for r in (1, 10))
    assert 1 < ten / one < 10  # biases do not grow


def test_a_file_and_silence(run, tmp_path):
    place = tmp_path / "bounds.json"
    result = run("bounds", MODEL, "--alpha", "0.5", "--json", place, "--quiet")
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads(place.read_text("utf-8"))["theorems"][0]["alpha"] == 0.5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--epsilom", "1"], "did you mean '--epsilon'"),
        (["--ratio", "50%"], "write 0.5"),
        (["--delta", "2"], "between 0 and 1"),
        (["--epsilon", "nan"], "no finite number"),
        (["--alpha", "0.5", "--ratio", "0.5"], "give one"),
        (["--json", "nowhere/x.json"], "there is no folder"),
        (["--input-shape", "y:1,2"], "no input 'y'"),
    ],
)
def test_errors_are_one_line_with_a_remedy(run, given, words):
    result = run("bounds", MODEL, *given)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
