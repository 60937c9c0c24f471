"""Files that are no usable model: refused with one line and 2, or with 3 where nothing in them can be pruned."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from workplace import QUICK, built, good, tensor

node = helper.make_node


def external(location, length=None):
    """The good model with w2 stored outside."""
    model = good()
    weight = next(t for t in model.graph.initializer if t.name == "w2")
    data = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", 0), ("length", length or len(data))):
        weight.external_data.add(key=key, value=str(value))
    return model, data


def write(model):
    with open("net.onnx", "wb") as file:  # noqa: PTH123
        file.write(model.SerializeToString())


@pytest.mark.parametrize("command", ["prune", "inspect"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"hello, I am no model\n" * 50, "not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "not an ONNX model"),
        (bytes(4096), "not an ONNX model"),
        ("half", "not an ONNX model or was cut short"),
        ("but one", "not an ONNX model or was cut short"),
    ],
    ids=["empty", "text", "picture", "zeros", "cut in half", "last byte missing"],
)
def test_not_a_model(refused, place, command, content, says):
    whole = (place / "net.onnx").read_bytes()
    content = {"half": whole[: len(whole) // 2], "but one": whole[:-1]}.get(content, content)
    (place / "net.onnx").write_bytes(content)
    refused(command, "net.onnx", *(("--ratio", "0.4") if command == "prune" else ()), says=["net.onnx", says])


def test_missing(refused, place):
    refused("nothing.onnx", "--ratio", "0.4", says=["nothing.onnx", "check the path"])
    refused("inspect", "nothing.onnx", says=["nothing.onnx does not exist"])
    refused("compare", "net.onnx", "nothing.onnx", "--data", "data.npz", says=["nothing.onnx does not exist"])


def test_folder(refused, place):
    (place / "folder.onnx").mkdir()
    refused("folder.onnx", "--ratio", "0.4", says=["folder.onnx is a folder"])
    refused("inspect", "folder.onnx", says=["is a folder"])


def test_external_data_is_missing(prune, place):
    write(external("weights.bin")[0])
    prune(says=["weights.bin", "'w2'", "missing", "put it beside the model"])


def test_external_data_was_cut_short(prune, place):
    model, data = external("weights.bin")
    write(model)
    (place / "weights.bin").write_bytes(data[:100])
    prune(says=["weights.bin", "100 bytes", "'w2'"])


@pytest.mark.parametrize("where", ["../secret.bin", "a/../../secret.bin", "absolute", "..\\secret.bin", ""])
def test_external_data_outside(prune, place, where):
    """Neither read nor named as if it could be."""
    place.with_name("secret.bin").write_bytes(bytes(4096))
    location = str(place.with_name("secret.bin")) if where == "absolute" else where
    write(external(location)[0])
    prune(says=["'w2'", "outside the model's folder", "hostile"])


def test_external_data_through_a_link_that_leaves(prune, place):
    model, data = external("weights.bin")
    write(model)
    outside = place.parent / "elsewhere"
    outside.mkdir()
    (outside / "weights.bin").write_bytes(data)
    (place / "weights.bin").symlink_to(outside / "weights.bin")
    prune(says=["weights.bin", "a link that leaves the model's folder"])


@pytest.mark.parametrize("key", ["offset", "length"])
def test_external_data_with_nonsense_numbers(prune, place, key):
    model, data = external("weights.bin")
    (place / "weights.bin").write_bytes(data)
    for tensor_ in model.graph.initializer:
        for entry in tensor_.external_data:
            entry.value = "many" if entry.key == key else entry.value
    write(model)
    prune(says=["'w2'", "external data"])


def test_cycle(prune, place):
    model = good()
    model.graph.node[0].input[0] = "a2"
    write(model)
    prune(says=["net.onnx", "cycl"])


def test_two_nodes_make_one_tensor(prune, place):
    model = good()
    model.graph.node[3].output[0] = "a1"
    write(model)
    prune(says=["net.onnx", "a1"])


def test_two_weights_with_one_name(prune, place):
    model = good()
    model.graph.initializer.append(tensor("w1", 8, 16))
    write(model)
    prune(says=["net.onnx", "w1"])


def test_tensor_that_nothing_makes(prune, place):
    model = good()
    model.graph.node[2].input[0] = "ghost"
    write(model)
    prune(says=["net.onnx", "ghost"])


def test_weights_shorter_than_their_shape(prune, place):
    model = good()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:40]
    write(model)
    prune(says=["net.onnx", "w1"])


def test_shapes_that_do_not_fit_each_other(prune, place):
    model = good()
    model.graph.initializer[2].CopyFrom(tensor("w2", 15, 12))
    write(model)
    prune(says=["ONNX Runtime refuses the model", "fc2", "15 and 16"])


def test_opset_from_the_future(prune, place):
    write(good(opset=999))
    prune(says=["net.onnx", "opset 999", "older opset"])


def test_ir_from_the_future(prune, place):
    write(good(ir=99))
    prune(says=["net.onnx", "99"])


def test_operator_from_nowhere(prune, place):
    model = good()
    model.graph.node[1].op_type = "Frobnicate"
    write(model)
    prune(says=["Frobnicate"])


def test_no_nodes(prune, place):
    write(built([], outputs=[("x", ("n", 8))]))
    prune(says=["net.onnx", "no nodes"])


def test_no_outputs(prune, refused):
    model = good()
    model.graph.ClearField("output")
    write(model)
    prune(says=["net.onnx has no outputs", "export it again"])
    refused("inspect", "net.onnx", says=["net.onnx has no outputs"])


def test_nothing_to_prune_in_it(prune, place):
    write(built([node("Relu", ["x"], ["y"])], outputs=[("y", ("n", 8))]))
    prune(code=3, says=["no channel of this model can be removed"])


def test_only_one_layer(prune, place):
    """Its outputs are the model's."""
    write(built([node("Gemm", ["x", "w"], ["y"])], [tensor("w", 8, 4)]))
    prune(code=3, says=["no channel of this model can be removed", "graph output"])


def test_only_operators_that_pin(prune, place):
    nodes = [node("Gemm", ["x", "w"], ["h"]), node("CumSum", ["h", "axis"], ["s"]), node("Gemm", ["s", "v"], ["y"])]
    axis = helper.make_tensor("axis", TensorProto.INT64, [], [1])
    write(built(nodes, [tensor("w", 8, 8), tensor("v", 8, 4), axis]))
    prune(code=3, says=["no channel of this model can be removed", "CumSum"])


def test_zero_sized_weight(prune, place):
    nodes = [node("Gemm", ["x", "w"], ["h"]), node("Gemm", ["h", "v"], ["y"])]
    write(built(nodes, [tensor("w", 8, 0), tensor("v", 0, 4)]))
    prune(says=["'w'", "[8, 0]"])


def test_zero_sized_input(prune, place):
    write(built([node("Relu", ["x"], ["y"])], inputs=[("x", ("n", 0))], outputs=[("y", ("n", 0))]))
    prune(says=["'x'", "length 0"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(prune, place, value):
    model = good()
    array = np.array(onnx.numpy_helper.to_array(model.graph.initializer[2]))
    array[3, 5] = value
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(array, "w2"))
    write(model)
    prune(says=["w2", "NaN or infinity", "train or export it again, or leave it alone: --skip 'fc2'"])


def broken_at_the_end(part):
    model = good()
    array = np.array(onnx.numpy_helper.to_array(model.graph.initializer[4]))
    array[part] = np.nan
    model.graph.initializer[4].CopyFrom(onnx.numpy_helper.from_array(array, "w3"))
    write(model)
    return array


@pytest.mark.parametrize("method", ["coreset-channel --align 1", "magnitude", "svd"])
def test_weights_that_are_no_numbers_may_be_skipped(place, run, method):
    """One of four outputs is NaN: the rest is worth pruning, and nothing touches what was skipped."""
    array = broken_at_the_end(np.s_[3, 2])
    given = ("--ratio", "0.4", *QUICK, "--data", "data.npz", "--skip", "fc3", "--method", *method.split())
    result = run("net.onnx", *given)
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert "warning NaN or infinity in the weights 'w3' of layer 'fc3', which stay as they are" in said
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load("net.pruned.onnx").graph.initializer}
    assert np.array_equal(stored.pop("w3"), array, equal_nan=True)
    assert all(np.isfinite(value).all() for value in stored.values())
    assert sum(np.count_nonzero(value) for name, value in stored.items() if name.startswith("w")) < 0.8 * (8 * 16 + 16 * 12)


def test_a_broken_model_is_compared_and_fails_gates(place, run):
    onnx.save(good(), "good.onnx")
    broken_at_the_end(np.s_[3, 2])
    given = ("compare", "good.onnx", "net.onnx", "--data", "data.npz", "--samples", "32")
    result = run(*given)
    assert result.exit_code == 0
    assert "the second model gives NaN or infinity where the first does not, at 32 positions" in " ".join(result.stdout.split())
    assert run(*given, "--fail-if", "relative_l2>0.5").exit_code == 1


def test_a_model_that_gives_no_numbers_is_refused_whatever_is_skipped(prune, place):
    broken_at_the_end(np.s_[3])
    prune("--data", "data.npz", "--skip", "fc3", says=["'w3' of layer 'fc3' holds NaN", "so do all outputs of the model"])


def test_strings_as_input(prune, place):
    write(built([node("Identity", ["x"], ["y"])], kind=TensorProto.STRING, outputs=[("y", ("n", 8))]))
    prune(says=["'x'", "strings"])


def test_sequence_as_input(prune, place):
    info = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, ["n", 8])
    model = built([node("ConcatFromSequence", ["x"], ["y"], axis=0)])
    model.graph.input[0].CopyFrom(info)
    write(model)
    prune(code=3)


def test_two_outputs_are_fine(place, run):
    model = good()
    model.graph.output.append(helper.make_tensor_value_info("h2", TensorProto.FLOAT, ["n", 12]))
    write(model)
    result = run("net.onnx", "--ratio", "0.4", "--no-latency", "--data", "data.npz", "-q")
    assert result.exit_code == 0, result.stderr
    assert [o.name for o in onnx.load("net.pruned.onnx").graph.output] == ["y", "h2"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="POSIX permissions, and root may read everything")
def test_without_permission_to_read(prune, place):
    (place / "net.onnx").chmod(0)
    prune(says=["net.onnx", "permission"])
    (place / "net.onnx").chmod(0o600)
