"""Calibration and test samples are apart, labels follow the test part, and the graph has the samples' sizes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny_nets import NETS, inputs_for

import onnxprune
from onnxprune.calibration import noise
from onnxprune.calibration.samples import open_samples, valid_ids
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.graph import load, prepare


def opened(model, data=None, test_data=None, **more):
    fields = {"samples": 64, "held_out": 0.25, "seed": 0, "input_shapes": None, "mean": None, "std": None, "layout": "auto"}
    return open_samples(load(model), data, test_data, **(fields | more))


def all_of(source):
    return np.concatenate([batch["x"] for batch in source.batches(7)])


def test_held_out_samples_are_never_fitted_to():
    model = NETS["chain"]()
    data = inputs_for(model, 100)
    _, found = opened(model, data, samples=60)
    fitted, judged = all_of(found.calibration), all_of(found.test)
    assert len(fitted) == 60
    assert len(judged) == 20
    together = {row.tobytes() for row in np.concatenate([fitted, judged])}
    assert len(together) == 80
    assert together <= {row.tobytes() for row in data}


def test_test_data_of_its_own_are_used_whole():
    model = NETS["chain"]()
    _, found = opened(model, inputs_for(model, 30), inputs_for(model, 500, seed=1))
    assert found.calibration.count == 30
    assert found.test.count == 500
    assert not found.held_out


def test_labels_follow_the_samples_that_were_held_out():
    model = NETS["chain"]()
    data = inputs_for(model, 100)
    labels = np.arange(100)
    _, found = opened(model, data, samples=75)
    picked = found.labels(labels)
    for label, row in zip(picked, all_of(found.test), strict=True):
        np.testing.assert_array_equal(row, data[label])


def test_labels_of_test_data_of_its_own():
    model = NETS["chain"]()
    _, found = opened(model, inputs_for(model, 30), inputs_for(model, 12, seed=1))
    np.testing.assert_array_equal(found.labels(np.arange(12)), np.arange(12))


def test_too_few_labels_are_refused():
    model = NETS["chain"]()
    _, found = opened(model, inputs_for(model, 30), inputs_for(model, 12, seed=1))
    with pytest.raises(DataError, match="5 labels for 12 samples"):
        found.labels(np.arange(5))


def test_the_graph_is_traced_at_the_sizes_of_the_samples():
    model = NETS["chain"]()
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    del model.graph.value_info[:]
    for axis in range(4):
        model.graph.output[0].type.tensor_type.shape.dim[axis].dim_param = f"o{axis}"
    graph, _ = opened(model, np.zeros((20, 3, 12, 10), np.float32))
    assert graph.inputs["x"] == (1, 3, 12, 10)


def test_without_data_there_is_noise_with_a_warning():
    _, found = opened(NETS["chain"](), None)
    assert not found.calibration.real
    assert found.warnings == [noise.WARNING]
    assert found.calibration.count == 64


def test_what_was_fitted_to_noise_and_judged_by_samples_is_said_to_be():
    """Not that deviations mean nothing: they were measured on real samples."""
    model = NETS["chain"]()
    _, found = opened(model, None, inputs_for(model, 30))
    assert found.warnings == [noise.UNFITTED]


def test_what_is_for_images_needs_images(tmp_path):
    model, data = NETS["chain"](), inputs_for(NETS["chain"](), 30)
    for given, says in (
        ({"mean": 0.5}, "mean is for images, and there are none in array; leave it out"),
        ({"std": [0.5], "layout": "nhwc"}, "std and layout are for images"),
    ):
        with pytest.raises(UsageError, match=says):
            opened(model, data, **given)
        with pytest.raises(UsageError, match=says.split(";")[0].replace("array", "noise")):
            opened(model, None, **given)
    Image.new("RGB", data.shape[2:]).save(tmp_path / "one.png")
    _, found = opened(model, data, tmp_path, mean=0.5)
    assert next(found.test.batches(1))["x"].max() == -0.5


def test_batches_leave_some_for_judging_the_fit():
    model = NETS["chain"]()
    assert opened(model, inputs_for(model, 20))[1].batch(32) == 1
    assert opened(model, inputs_for(model, 1000), samples=640)[1].batch(32) == 32


def test_a_single_sample_serves_twice_with_a_warning():
    model = NETS["chain"]()
    _, found = opened(model, inputs_for(model, 1))
    assert found.calibration.count == found.test.count == 1
    assert any("too few" in w for w in found.warnings)


def test_text_inputs_are_refused():
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", TensorProto.STRING, [1])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [1])],
    )  # fmt: skip
    with pytest.raises(ModelError, match="takes strings"):
        opened(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_made_up_ids_stay_inside_the_table():
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["y"], axis=0),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.INT32, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 3])],
        [numpy_helper.from_array(np.zeros((11, 3), np.float32), "table")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert valid_ids(prepare(load(model).model)[0]) == {"x": 11}
    _, found = opened(model)
    ids = all_of(found.calibration)
    assert ids.dtype == np.int32
    assert ids.min() >= 0
    assert ids.max() < 11


@pytest.mark.parametrize("given", [True, False])
def test_nodes_of_a_graph_are_no_samples(given):
    """Their number stands first in one input, and on both axes of another."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["near", "h"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["V", 5]), ("near", ["V", "V"]))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["V", 4])]
    weights = [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in (("w", (5, 7)), ("v", (7, 4)))]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, weights), ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    rng = np.random.default_rng(0)
    data = {"x": rng.random((9, 5), np.float32), "near": rng.random((9, 9), np.float32)} if given else None
    report = onnxprune.prune(model, ratio=0.4, data=data, latency=False).report
    assert [(g["kept"], g["channels"]) for g in report["groups"]] == [(4, 7)]
