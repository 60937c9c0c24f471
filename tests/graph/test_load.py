"""Reading models: external data in every layout, text forms, and a refusal of one line for whatever is not a usable model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph.load import load
from tests.graph.nets import arrays, conv_net, feeds, node, run, values


def model() -> onnx.ModelProto:
    return conv_net([node("Relu", "a", "b")])


def write(folder: Path, many: bool = False) -> Path:
    """A model with its weights outside."""
    path = folder / "m.onnx"
    place = {"all_tensors_to_one_file": not many, "location": None if many else "m.data"}
    onnx.save(model(), path, save_as_external_data=True, size_threshold=0, **place)
    return path


def entry(path: Path, tensor: int = 0, **changes: str | None) -> Path:
    """Change or drop entries of the external data of one tensor."""
    held = onnx.load(path, load_external_data=False)
    data = held.graph.initializer[tensor].external_data
    kept = {e.key: e.value for e in data} | changes
    del data[:]
    for key, value in kept.items():
        if value is not None:
            data.add(key=key, value=value)
    path.write_bytes(held.SerializeToString())
    return path


def refusal(path) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.remedy
    assert caught.value.exit_code == 2
    return text


def test_a_plain_file(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    file = load(path)
    assert file.model == model()
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (file.size, file.external, file.notes, file.label) == (path.stat().st_size, {}, (), "m.onnx")


def test_a_proto_is_copied():
    given = model()
    file = load(given)
    file.model.graph.initializer[0].ClearField("raw_data")
    assert given == model()
    assert (file.path, file.label) == (None, "model")
    assert file.sha256 == load(model()).sha256


@pytest.mark.parametrize("many", [False, True])
def test_external_data_comes_in(tmp_path, many):
    file = load(write(tmp_path, many))
    assert file.external == {n: n if many else "m.data" for n in ("w1", "b1", "w2")}
    assert not any(t.external_data or t.data_location for t in file.model.graph.initializer)
    assert all(np.array_equal(v, arrays(model())[n]) for n, v in arrays(file.model).items())
    assert file.size == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_external_data_of_a_proto_lies_in_the_working_directory(tmp_path, monkeypatch):
    folder = tmp_path / "with.a.dot"
    folder.mkdir()
    held = onnx.load(write(folder), load_external_data=False)
    monkeypatch.chdir(folder)
    assert load(held).external["w1"] == "m.data"


def test_external_data_in_a_folder_below(tmp_path):
    path = write(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "m.data").rename(tmp_path / "sub" / "m.data")
    for n in range(3):
        entry(path, n, location="sub/m.data")
    assert load(path).external["w2"] == "sub/m.data"


def test_external_data_without_length_runs_to_the_end(tmp_path):
    path = entry(write(tmp_path, many=True), offset=None, length=None)
    assert np.array_equal(arrays(load(path).model)["w1"], arrays(model())["w1"])


def test_external_data_of_constants_and_subgraphs(tmp_path):
    inner = [numpy_helper.from_array(values(4, seed=s), "k") for s in (1, 2)]
    outs = [helper.make_tensor_value_info("o", TensorProto.FLOAT, [4])]
    body = [helper.make_graph([node("Neg", "k", "o")], f"b{s}", [], outs, [inner[s]]) for s in (0, 1)]
    nodes = [
        helper.make_node("Constant", [], ["c1"], value=numpy_helper.from_array(values(4, seed=3), "value")),
        helper.make_node("Constant", [], ["c2"], value=numpy_helper.from_array(values(4, seed=4), "value")),
        helper.make_node("If", ["x"], ["z"], then_branch=body[0], else_branch=body[1]),
        node("Sum", "z c1 c2", "y"),
    ]
    info = helper.make_tensor_value_info
    held = helper.make_model(
        helper.make_graph(nodes, "g", [info("x", TensorProto.BOOL, [])], [info("y", TensorProto.FLOAT, [4])]), ir_version=8
    )
    held.opset_import[0].version = 17
    expected = held.SerializeToString()
    places = [t for n in held.graph.node for a in n.attribute for t in ([a.t] if a.type == 4 else a.g.initializer)]
    for number, tensor in enumerate(places):
        (tmp_path / f"{number}.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{number}.bin")
    (tmp_path / "m.onnx").write_bytes(held.SerializeToString())
    file = load(tmp_path / "m.onnx")
    assert sorted(file.external.values()) == ["0.bin", "1.bin", "2.bin", "3.bin"]
    assert file.model.SerializeToString() == expected


def test_the_layout_of_model_hubs(tmp_path):
    """snapshots/1/m.onnx and its data are both links into blobs, under other names."""
    real = write(tmp_path)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    real.rename(blobs / "abc")
    (tmp_path / "m.data").rename(blobs / "def")
    (snapshot / "m.onnx").symlink_to("../../blobs/abc")
    (snapshot / "m.data").symlink_to("../../blobs/def")
    file = load(snapshot / "m.onnx")
    assert np.array_equal(arrays(file.model)["w1"], arrays(model())["w1"])


@pytest.mark.parametrize("suffix", ["onnxtxt", "textproto", "json"])
@pytest.mark.filterwarnings("ignore:The onnxtxt format")
def test_text_forms(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    onnx.save(model(), path)
    got = load(path).model
    np.testing.assert_allclose(run(got, feeds(model(), 1))[0], run(model(), feeds(model(), 1))[0], rtol=1e-4)


@pytest.mark.parametrize("suffix", ["onnx", "onnxtxt", "textproto", "json", "pb"])
@pytest.mark.parametrize(
    "content", [b"this is no model {", b"\xff\xfe\x00\x01" * 9, b"PK\x03\x04" + bytes(40), b"<html></html>\n"]
)
def test_anything_else_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(content)
    assert f"{path} is not an ONNX model or was cut short" in refusal(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    whole = model().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert str(path) in refusal(path)


def test_what_is_not_there_or_no_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.onnx")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "empty.onnx").touch()
    assert "is empty" in refusal(tmp_path / "empty.onnx")
    assert "none.onnx" in refusal(tmp_path / "none.onnx" / "below.onnx")
    assert refusal(tmp_path / ("long" * 200))
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    assert "loop.onnx" in refusal(tmp_path / "loop.onnx")
    assert "does not exist" in refusal("a\0b.onnx")


@pytest.mark.parametrize("locked", ["m.onnx", "m.data"])
def test_a_file_without_permission(tmp_path, monkeypatch, locked):
    path, opened = write(tmp_path), Path.open

    def denied(file, *args, **kwargs):
        if file.name == locked:
            raise PermissionError(13, "Permission denied")
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    assert f"{locked} cannot be read (Permission denied)" in refusal(path)


@pytest.mark.parametrize("kind", ["TensorProto", "GraphProto", "no graph", "no nodes", "no version"])
def test_protobufs_that_are_no_model(tmp_path, kind):
    path = tmp_path / "m.onnx"
    held = model()
    if kind == "no graph":
        held.ClearField("graph")
    elif kind == "no nodes":
        del held.graph.node[:]
    elif kind == "no version":
        held.ClearField("ir_version")
    part = {"TensorProto": held.graph.initializer[0] if kind == "TensorProto" else None, "GraphProto": held.graph}.get(kind, held)
    path.write_bytes(part.SerializeToString())
    assert str(path) in refusal(path)


def broken(kind: str) -> onnx.ModelProto:
    held = model()
    nodes = held.graph.node
    match kind:
        case "cycle":
            nodes[1].input[0] = "y"
        case "output twice":
            nodes[1].output[0] = "a"
        case "reads nothing that is":
            nodes[1].input[0] = "nowhere"
        case "no such operator":
            nodes[1].op_type = "Relus"
        case "no opset":
            del held.opset_import[:]
        case "unknown domain":
            nodes[1].domain = "not.imported"
        case "too few inputs":
            del nodes[0].input[1:]
        case "weight of the wrong size":
            held.graph.initializer[0].dims[0] = 7
        case "output nobody makes":
            held.graph.output[0].name = "nobody"
    return held


@pytest.mark.parametrize(
    "kind",
    [
        "cycle",
        "output twice",
        "reads nothing that is",
        "no such operator",
        "no opset",
        "unknown domain",
        "too few inputs",
        "weight of the wrong size",
        "output nobody makes",
    ],
)
def test_graphs_that_are_no_graphs(tmp_path, kind):
    path = tmp_path / "m.onnx"
    path.write_bytes(broken(kind).SerializeToString())
    text = refusal(path)
    assert str(path) in text
    assert "valid" in text or "cycle" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"location": "gone.data"}, "is missing"),
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"location": "../m.data"}, "outside the model's folder"),
        ({"location": "a/../../m.data"}, "outside the model's folder"),
        ({"location": "..\\m.data"}, "outside the model's folder"),
        ({"location": ""}, "outside the model's folder"),
        ({"location": None}, "outside the model's folder"),
        ({"offset": "many"}, "damaged"),
        ({"length": "1e3"}, "damaged"),
        ({"offset": "-4"}, "cut short"),
        ({"offset": "99999999"}, "cut short"),
        ({"offset": "99999999", "length": None}, "cut short"),
        ({"length": "99999999"}, "cut short"),
        ({"length": "8"}, "needs 648 bytes"),
        ({"offset": None, "length": None}, "needs 648 bytes"),
    ],
)
def test_external_entries_that_lead_nowhere(tmp_path, changes, words):
    text = refusal(entry(write(tmp_path), **changes))
    assert words in text
    assert "'w1'" in text


def test_a_truncated_data_file(tmp_path):
    path = write(tmp_path)
    data = tmp_path / "m.data"
    data.write_bytes(data.read_bytes()[:700])
    assert "m.data holds 700 bytes" in refusal(path)


def test_a_missing_data_file(tmp_path):
    path = write(tmp_path)
    (tmp_path / "m.data").unlink()
    assert "put it beside the model" in refusal(path)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_links_that_leave_the_folder(tmp_path, what):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = write(inside)
    secret = tmp_path / "secret"
    secret.mkdir()
    (inside / "m.data").rename(secret / "m.data")
    if what == "file":
        (inside / "m.data").symlink_to(secret / "m.data")
    else:
        (inside / "sub").symlink_to(secret)
        for n in range(3):
            entry(path, n, location="sub/m.data")
    assert "leaves the model's folder" in refusal(path)


def test_a_link_inside_the_folder_is_followed(tmp_path):
    path = write(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "m.data").rename(tmp_path / "real" / "d")
    (tmp_path / "m.data").symlink_to("real/d")
    assert load(path).external["w1"] == "m.data"
