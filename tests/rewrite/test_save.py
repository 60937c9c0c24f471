"""A model is on disk whole or not at all: external data in its style, and the old pair intact whenever writing fails."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import SaveError
from onnxprune.graph.load import load
from onnxprune.jobs.job import PruneResult
from onnxprune.rewrite import save as module
from onnxprune.rewrite.save import check_target, save
from tests.graph.nets import arrays, conv_net, feeds, net, node, pruned, run, values

ONE = {"w1": "old.data", "b1": "old.data", "w2": "old.data"}
MANY = {"w1": "w1", "b1": "sub/b1", "w2": "w2"}


def model(seed: int = 0) -> onnx.ModelProto:
    made = conv_net([node("Relu", "a", "b")])
    for tensor in made.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(seed), tensor.name))
        tensor.doc_string = f"doc {tensor.name}"
        tensor.metadata_props.add(key="k", value="v")
    return made


def on_disk(path: Path, given: dict) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, given)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("external", [{}, ONE, MANY, {"w1": "only.this"}], ids=["inside", "one", "many", "some"])
def test_what_is_written_is_what_was_given(tmp_path, external):
    path, made = tmp_path / "m.onnx", model()
    before = made.SerializeToString()
    size = save(made, path, external)
    assert made.SerializeToString() == before
    assert size == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 1 + len(set(external.values()))
    held = onnx.load(path, load_external_data=False)
    assert {t.name for t in held.graph.initializer if t.data_location == TensorProto.EXTERNAL} == set(external)
    file = load(path)
    assert file.model.SerializeToString() == before
    np.testing.assert_array_equal(on_disk(path, feeds(made, 2))[0], run(made, feeds(made, 2))[0])


def test_same_model_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(model(), tmp_path / name / "m.onnx", MANY)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_tensors_start_at_pages(tmp_path):
    save(model(), tmp_path / "m.onnx", ONE)
    held = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    offsets = [int(e.value) for t in held.graph.initializer for e in t.external_data if e.key == "offset"]
    assert offsets == [0, 4096, 8192]


def test_files_with_the_same_content_do_not_mix(tmp_path):
    """Two original files of one name in two folders, with equal bytes; and equal bytes cut in another way."""
    made = model()
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((6, 3, 3, 3), np.float32), "w1"))
    for name, shape in (("z1", (162,)), ("z2", (81,)), ("z3", (81,))):
        made.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    save(made, tmp_path / "m.onnx", {"w1": "a/x", "z1": "b/x", "z2": "c/x", "z3": "c/x"})
    assert load(tmp_path / "m.onnx").model.SerializeToString() == made.SerializeToString()


def test_typed_fields_go_outside_too(tmp_path):
    made = model()
    weight = made.graph.initializer[0]
    weight.float_data.extend(numpy_helper.to_array(weight).reshape(-1).tolist())
    weight.ClearField("raw_data")
    save(made, tmp_path / "m.onnx", ONE)
    assert np.array_equal(arrays(load(tmp_path / "m.onnx").model)["w1"], arrays(made)["w1"])


def test_constants_without_names_go_outside_apart(tmp_path):
    nodes = [
        helper.make_node("Constant", [], [f"c{i}"], value=numpy_helper.from_array(values(6, 1, 1, seed=i), "")) for i in (1, 2)
    ]
    made = conv_net([*nodes, node("Sum", "a c1 c2", "b")])
    save(made, tmp_path / "m.onnx", {"c1 value ": "c1", "c2 value ": "c2"})
    file = load(tmp_path / "m.onnx")
    assert set(file.external) == {"c1 value ", "c2 value "}
    assert file.model.SerializeToString() == made.SerializeToString()


def test_clones_lie_where_their_original_lay(tmp_path):
    nodes = [node("Conv", "x w1 b1", "l"), node("Conv", "l w2", "y1"), node("Conv", "x w4 b1", "r"), node("Conv", "r w3", "y2")]
    weights = {
        "w1": values(6, 3, 1, 1),
        "w4": values(6, 3, 1, 1, seed=2),
        "b1": values(6),
        "w2": values(4, 6, 1, 1),
        "w3": values(4, 6, 1, 1, seed=1),
    }
    made = net(nodes, weights, {"x": ["N", 3, 4, 4]}, ["y1", "y2"])
    small = pruned(made)[2].model
    clones = [t.name for t in small.graph.initializer if "@" in t.name]
    assert clones
    save(small, tmp_path / "m.onnx", dict.fromkeys(("w1", "w4", "b1"), "d"))
    held = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    outside = {t.name for t in held.graph.initializer if t.external_data}
    assert outside >= set(clones)
    assert "w2" not in outside
    np.testing.assert_array_equal(on_disk(tmp_path / "m.onnx", feeds(made, 1))[0], run(small, feeds(made, 1))[0])


def test_a_model_too_large_for_one_protobuf_goes_outside(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SERIALISABLE", 1000)
    made = conv_net([node("Relu", "a", "b")], channels=16)
    save(made, tmp_path / "m.onnx")
    held = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert [t.name for t in held.graph.initializer if t.external_data] == ["w1"]
    np.testing.assert_array_equal(on_disk(tmp_path / "m.onnx", feeds(made, 1))[0], run(made, feeds(made, 1))[0])


@pytest.mark.parametrize("external", [{}, ONE, MANY], ids=["inside", "one", "many"])
def test_an_older_result_is_replaced_and_its_data_goes(tmp_path, external):
    path = tmp_path / "m.onnx"
    save(model(1), path, external)
    bystanders = {
        "m.onnx.big.onnx.0123456789ab.data": b"1",
        "other.data": b"2",
        "m.onnx.notes.data": b"3",
        "xm.onnx.0123456789ab.data": b"4",
    }
    for name, content in bystanders.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "m.onnx.ba9876543210.data").write_bytes(b"left by a killed run")
    save(model(2), path, external)
    found = contents(tmp_path)
    assert {n: found.pop(n) for n in bystanders} == bystanders
    assert len(found) == 1 + len(set(external.values()))
    assert np.array_equal(arrays(load(path).model)["b1"], arrays(model(2))["b1"])


def test_saving_the_same_again_keeps_its_data(tmp_path):
    path = tmp_path / "m[1].onnx"
    for _ in range(2):
        save(model(), path, ONE)
    assert load(path).model.SerializeToString() == model().SerializeToString()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_lay_there_may_be_anything(tmp_path):
    path = tmp_path / "m.onnx"
    for content in (b"no model", b"", b"\xff" * 50):
        path.write_bytes(content)
        save(model(), path)
        assert load(path).model.SerializeToString() == model().SerializeToString()


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        save(model(), tmp_path / "m.onnx", ONE)
    finally:
        os.umask(old)
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o640}


class BrokenError(Exception):
    """Something that is no OSError, such as KeyboardInterrupt."""


@pytest.mark.parametrize("external", [{}, ONE, MANY], ids=["inside", "one", "many"])
@pytest.mark.parametrize("call", range(4))
@pytest.mark.parametrize(
    "problem", [OSError(28, "No space left on device"), KeyboardInterrupt(), BrokenError()], ids=["disk", "interrupt", "bug"]
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_whatever_fails_the_old_pair_stays(tmp_path, monkeypatch, external, call, problem, step):
    path = tmp_path / "m.onnx"
    save(model(1), path, external)
    before, done = contents(tmp_path), []
    real = {"fsync": os.fsync, "replace": Path.replace}[step]

    def failing(*args):
        done.append(args)
        if len(done) > call:
            raise problem
        return real(*args)

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), failing)
    if call > len(set(external.values())):
        # All files are in place by then: a folder that cannot be synced is no failure.
        if isinstance(problem, OSError):
            save(model(2), path, external)
            assert load(path).model.SerializeToString() == model(2).SerializeToString()
        return
    with pytest.raises(SaveError if isinstance(problem, OSError) else type(problem)) as caught:
        save(model(2), path, external)
    if isinstance(problem, OSError):
        assert "the disk is full" in str(caught.value)
        assert str(path) in str(caught.value)
    assert contents(tmp_path) == before


LIMITED = """
import resource, signal, sys
from pathlib import Path
import onnx
from onnxprune.errors import SaveError
from onnxprune.rewrite.save import save
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = onnx.load(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))
try:
    save(model, Path(sys.argv[2]), {"w": "w.data"} if sys.argv[3] == "outside" else {})
except SaveError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def large(path: Path) -> None:
    held = model()
    held.graph.initializer.append(numpy_helper.from_array(values(100, 300), "w"))
    onnx.save(held, path)


def subprocess_of(code: str, *args: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("style", ["inside", "outside"])
def test_a_full_disk(tmp_path, style):
    """By RLIMIT_FSIZE: the operating system itself refuses to write on."""
    source, folder = tmp_path / "source.onnx", tmp_path / "out"
    folder.mkdir()
    large(source)
    save(model(1), folder / "m.onnx", ONE)
    before = contents(folder)
    out, err = (process := subprocess_of(LIMITED, source, folder / "m.onnx", style)).communicate(timeout=60)
    assert (process.returncode, err) == (2, "")
    assert "the file is larger than this system allows" in out
    assert out.count("\n") == 1
    assert contents(folder) == before


KILLED = """
import os, sys, time
from pathlib import Path
import onnx
from onnxprune.rewrite.save import save
model, real, calls = onnx.load(sys.argv[1]), os.fsync, []
def slow(handle):
    real(handle)
    calls.append(handle)
    if len(calls) == int(sys.argv[3]):
        print("now", flush=True)
        time.sleep(60)
os.fsync = slow
save(model, Path(sys.argv[2]), {"w": "w.data"})
"""


@pytest.mark.parametrize("moment", [1, 2])
def test_killed_in_the_middle(tmp_path, moment):
    source, folder = tmp_path / "source.onnx", tmp_path / "out"
    folder.mkdir()
    large(source)
    path = folder / "m.onnx"
    save(model(1), path, ONE)
    process = subprocess_of(KILLED, source, path, moment)
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert load(path).model.SerializeToString() == model(1).SerializeToString()
    time.sleep(0.01)
    save(model(2), path, ONE)
    assert not list(folder.glob("m.onnx.*.data"))[1:]
    assert load(path).model.SerializeToString() == model(2).SerializeToString()


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(SaveError, match="cannot write"):
        save(model(), tmp_path / "none" / "m.onnx", ONE)
    source = tmp_path / "in.onnx"
    source.write_bytes(b"1")
    (tmp_path / "link.onnx").symlink_to(source)
    os.mkfifo(tmp_path / "pipe")
    refused = {
        source: "is the input",
        tmp_path / "link.onnx": "is the input",
        tmp_path: "is a folder",
        tmp_path / "pipe": "no regular",
        tmp_path / "none" / "m.onnx": "does not exist",
        tmp_path / "m.json": "read as text",
        tmp_path / "m.ONNXTXT": "read as text",
    }
    for path, words in refused.items():
        with pytest.raises(SaveError, match=words) as caught:
            check_target(path, [source])
        assert caught.value.remedy
    check_target(tmp_path / "fine.onnx", [source])


@pytest.mark.parametrize("named", ["w.bin", "link"])
def test_the_data_of_the_input_is_no_place_for_the_result(tmp_path, named):
    onnx.save(model(), tmp_path / "in.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "link").symlink_to(tmp_path / "w.bin")
    file, before = load(tmp_path / "in.onnx"), (tmp_path / "w.bin").read_bytes()
    result = PruneResult(model(1), {}, file.external, file.files)  # type: ignore[typeddict-item]
    with pytest.raises(SaveError, match=f"{named} is the input"):
        result.save(tmp_path / named)
    assert (tmp_path / "w.bin").read_bytes() == before


def test_data_of_an_earlier_result_stays_if_it_is_that_of_the_input(tmp_path):
    save(model(1), tmp_path / "m.onnx", ONE)
    (tmp_path / "copy.onnx").write_bytes((tmp_path / "m.onnx").read_bytes())
    file = load(tmp_path / "copy.onnx")
    save(model(2), tmp_path / "m.onnx", ONE, file.files)
    assert load(tmp_path / "copy.onnx").model == file.model
