"""Every numbered sample runs as its README says, and the bundled models and arrays are what samples/README.md says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "samples"
NUMBERED = sorted(path for path in SAMPLES.glob("[0-9][0-9]_*") if path.is_dir())
MODELS = sorted((SAMPLES / "models").glob("*.onnx"))
STATED = {"digits_cnn": 0.98, "digits_lenet300": 0.96}  # the least test accuracy that the samples promise


def runnable(folder: Path) -> list[list[str]]:
    """The commands of a sample, without the output folder: its shell scripts and its Python scripts."""
    shell = [["bash", str(path)] for path in sorted(folder.glob("*.sh"))]
    return shell + [[sys.executable, str(path)] for path in sorted(folder.glob("*.py"))]


def environment() -> dict[str, str]:
    """Works without an installation, and leaves the summary page of a CI run alone."""
    python = Path(sys.executable)
    found = [str(ROOT), str(ROOT / "cli"), *filter(None, [os.environ.get("PYTHONPATH")])]
    changes = {
        "ONNXPRUNE": f"{python.name} -m onnxprune_cli",
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(found),
    }
    return {name: value for name, value in os.environ.items() if name != "GITHUB_STEP_SUMMARY"} | changes


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_the_samples_are_found_and_indexed() -> None:
    assert NUMBERED, f"no numbered folder in {SAMPLES}"
    index = (SAMPLES / "README.md").read_text(encoding="utf-8")
    for folder in NUMBERED:
        assert f"({folder.name}/)" in index, f"{folder.name} is missing in samples/README.md"


@pytest.mark.parametrize("folder", NUMBERED, ids=lambda folder: folder.name)
def test_a_sample_runs_and_writes_only_where_it_is_told(folder: Path, tmp_path: Path) -> None:
    commands = runnable(folder)
    assert commands, f"{folder.name} has nothing to run: add a .sh or .py file"
    assert (folder / "README.md").is_file(), f"{folder.name} has no README.md"
    before = files(SAMPLES)
    for number, command in enumerate(commands):
        out = tmp_path / f"out{number}"
        # Run from elsewhere: a sample must find its files wherever it is called from.
        done = subprocess.run(
            [*command, str(out)],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)} returned {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert any(out.iterdir()), f"{' '.join(command)} left nothing in its output folder"
    assert files(SAMPLES) == before


def test_the_gates_of_the_workflow_are_the_ones_that_are_checked() -> None:
    folder = SAMPLES / "03_ci_gate"
    workflow, check, readme = ((folder / name).read_text(encoding="utf-8") for name in ("prune.yml", "check.sh", "README.md"))
    gates = re.findall(r"--fail-if '[^']+'", workflow)
    assert gates
    assert all(gate in check and gate in readme for gate in gates)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_reads_the_test_digits(path: Path) -> None:
    images, labels = labelled_digits()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    right = session.run(["logits"], {"image": images})[0].argmax(1) == labels
    assert right.mean() >= STATED[path.stem]
    stated = re.search(rf"`models/{path.name}`.*\| ([0-9.]+) % \|", (SAMPLES / "README.md").read_text(encoding="utf-8"))
    assert stated is not None
    assert right.mean() * 100 == pytest.approx(float(stated[1]), abs=0.41)  # two images more or less, on another machine


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_is_sound_and_takes_any_batch(path: Path) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert [value.name for value in [*model.graph.input, *model.graph.output]] == ["image", "logits"]
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_models_are_all_there() -> None:
    assert {path.stem for path in MODELS} == STATED.keys()


def test_the_arrays_are_disjoint_images_and_only_the_test_has_labels() -> None:
    images, labels = labelled_digits()
    with np.load(SAMPLES / "data" / "digits_calibration.npz") as file:
        assert file.files == ["image"]
        calibration = file["image"]
    assert calibration.shape == (300, 1, 16, 16)
    assert images.shape == (500, 1, 16, 16)
    for array in (calibration, images):
        assert array.dtype == np.float32
        assert float(array.min()) >= 0
        assert float(array.max()) <= 1
    assert labels.shape == (500,)
    assert set(labels.tolist()) == set(range(10))
    assert not {image.tobytes() for image in calibration} & {image.tobytes() for image in images}


def test_all_that_is_bundled_stays_small() -> None:
    bundled = [path for folder in ("models", "data") for path in (SAMPLES / folder).iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in bundled) < 2_000_000


def labelled_digits() -> tuple[np.ndarray, np.ndarray]:
    with np.load(SAMPLES / "data" / "digits_test.npz") as file:
        return file["image"], np.load(SAMPLES / "data" / "digits_test_labels.npy")
