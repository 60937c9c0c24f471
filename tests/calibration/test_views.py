"""What methods see: batch norm folded in as if it really were, channels found in every layout, NaN refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from tiny_nets import NETS, Net, inputs_for

from onnxprune.calibration.views import channel_views
from onnxprune.contract import Activation, MaxNorm, Moments
from onnxprune.devices import choose_device
from onnxprune.errors import OnnxpruneError
from onnxprune.graph import find, load, prepare
from onnxprune.matrix import rows
from onnxprune.runtime import Session


def views_of(model):
    shape = [d.dim_value or 1 for d in model.graph.input[0].type.tensor_type.shape.dim]
    graph, _ = prepare(load(model).model, {"x": shape})
    network = find(graph)
    views = {v.name: v for v in channel_views(graph, network, network.groups, {}, "cpu")}
    return graph, network, views


def tapped(model, *names):
    """Activations of the model on its inputs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {o.name for o in copy.graph.output}
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(n, 1, None) for n in names if n not in known)
    return Session(copy, choose_device("cpu")).run({"x": inputs_for(model, 2)})


def normalised_net(op):
    """One layer with batch norm behind it, then a reader; negative gammas included."""
    net = Net(11)
    if op == "Conv":
        y = net.conv("x", 4, 6)
    elif op == "Conv without bias":
        y = net.conv("x", 4, 6, bias=False)
    elif op == "grouped Conv":
        y = net.conv("x", 4, 6, groups=2)
    elif op == "ConvTranspose":
        y = net.node("ConvTranspose", "x", net.weight(4, 6, 3, 3, fan_in=4), net.bias(6), pads=[1, 1, 1, 1])
    elif op == "Gemm":
        y = net.node("Gemm", "x", net.weight(6, 4), net.bias(6), transB=1, alpha=0.5, beta=2.0)
    elif op == "Gemm, weight stored the other way":
        y = net.node("Gemm", "x", net.weight(4, 6, fan_in=4), net.bias(6), alpha=2.0)
    else:
        y = net.node("Add", net.node("MatMul", "x", net.weight(4, 6, fan_in=4)), net.bias(6))
    normed = net.batch_norm(y, 6)
    gamma = next(t for t in net.stored if t.name == net.nodes[-1].input[1])
    value = numpy_helper.to_array(gamma) * np.array([1, -1, 1, 1, -1, 1], np.float32)
    gamma.CopyFrom(numpy_helper.from_array(value, gamma.name))
    z = net.node("Sigmoid", normed)
    spatial = "Conv" in op
    out = net.conv(z, 6, 3) if spatial else net.gemm(z, 6, 3)
    return net.model((4, 5, 5) if spatial else (4,), out), y, normed


LAYERS = ["Conv", "Conv without bias", "grouped Conv", "Gemm", "Gemm, weight stored the other way", "MatMul", "ConvTranspose"]


@pytest.mark.parametrize("op", LAYERS)
def test_the_virtual_fold_is_the_real_one(op):
    """The maker's rows on the layer's patches give the output of the batch norm, without any batch norm in the formula."""
    model, _, normed = normalised_net(op)
    _, network, views = views_of(model)
    view = next(iter(views.values()))
    maker, layer = view.makers[0], network.layer[view.makers[0].layer]
    expected = torch.from_numpy(tapped(model, normed)[normed])
    channels_last = expected.movedim(1, -1).reshape(-1, 6)
    x = torch.from_numpy(inputs_for(model, 2))
    patches = rows(layer, x, 2 if "grouped" in op else 1, None)
    weight = maker.weight
    if op == "ConvTranspose":  # rows lie as they are stored: mirror the kernel for the convolution that it is
        weight = weight.reshape(6, 4, 3, 3).flip(2, 3).flatten(1)
    if "grouped" in op:  # a channel is one position of every group, their rows side by side and one norm for their biases
        pair = weight.reshape(3, 2, 18)
        left = channels_last - torch.cat([patches[:, g] @ pair[:, g].T for g in range(2)], 1)
        torch.testing.assert_close(left, left[:1].expand_as(left), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(left[0].reshape(2, 3).norm(dim=0), maker.bias, atol=1e-5, rtol=1e-4)
    else:
        torch.testing.assert_close(patches[:, 0] @ weight.T + maker.bias, channels_last, atol=1e-5, rtol=1e-4)
    assert view.activation == Activation("Sigmoid")


@pytest.mark.parametrize("op", LAYERS)
def test_the_scale_is_the_gamma_and_the_file_keeps_it(op):
    model, _, _ = normalised_net(op)
    before = model.SerializeToString(deterministic=True)
    graph, _, views = views_of(model)
    view = next(iter(views.values()))
    node = next(n for n in graph.nodes if n.op_type == "BatchNormalization")
    gamma = graph.array(node.input[1])
    found = view.makers[0].batch_norm_scale
    assert found is not None
    assert float(found.sum()) == pytest.approx(float(np.abs(gamma).sum()), rel=1e-5)
    assert model.SerializeToString(deterministic=True) == before


def test_without_batch_norm_the_rows_are_the_weights():
    model = NETS["chain"]()
    graph, network, views = views_of(model)
    view = views["conv0"]
    layer = network.layer["conv0"]
    np.testing.assert_array_equal(view.makers[0].weight.numpy(), graph.array(layer.weight).reshape(16, -1))
    np.testing.assert_array_equal(view.makers[0].bias.numpy(), graph.array(layer.bias))
    assert view.makers[0].batch_norm_scale is None
    reader = view.readers[0]
    stored = graph.array(network.layer[reader.layer].weight)
    np.testing.assert_array_equal(reader.weight.numpy(), stored.swapaxes(0, 1).reshape(16, -1))
    assert view.activation == Activation("Relu")


def test_a_residual_group_has_all_its_makers_and_readers():
    _, _, views = views_of(NETS["residual"]())
    stream = max(views.values(), key=lambda v: len(v.makers))
    assert len(stream.makers) == 3
    assert len(stream.readers) == 3
    assert all(m.batch_norm_scale is not None for m in stream.makers)


def test_a_flattened_channel_lies_at_many_positions_of_its_reader():
    net = Net(12)
    x = net.node("Flatten", net.relu(net.conv("x", 3, 6)))
    model = net.model((3, 4, 4), net.gemm(x, 96, 5))
    graph, network, views = views_of(model)
    view = views["conv0"]
    reader = view.readers[0]
    weight = graph.array(network.layer[reader.layer].weight)  # (5, 96)
    for c in range(6):
        np.testing.assert_array_equal(reader.weight[c].numpy(), weight[:, 16 * c : 16 * c + 16].T.reshape(-1))


def test_readers_of_a_group_convolution_see_the_channels_of_every_group():
    model = NETS["grouped"]()
    graph, network, views = views_of(model)
    view = views["conv0"]
    reader = view.readers[0]
    weight = graph.array(network.layer[reader.layer].weight)  # (16, 4, 3, 3): 4 groups of 4 inputs
    assert view.channels * reader.positions.shape[1] == 16
    for c in range(view.channels):
        blocks = []
        for position in reader.positions[c].tolist():
            g, i = divmod(position, 4)
            blocks.append(weight[4 * g : 4 * g + 4, i].reshape(-1))
        np.testing.assert_array_equal(np.sort(reader.weight[c].numpy()), np.sort(np.concatenate(blocks)))


def test_only_the_statistics_of_the_groups_own_layers_are_handed_over():
    model = NETS["chain"]()
    shape = [d.dim_value or 1 for d in model.graph.input[0].type.tensor_type.shape.dim]
    graph, _ = prepare(load(model).model, {"x": shape})
    network = find(graph)
    counted = {(name, kind): kind() for name in ("conv0", "conv2", "conv4") for kind in (MaxNorm, Moments)}
    views = {v.name: v for v in channel_views(graph, network, network.groups, counted, "cpu")}
    assert {name for name, _ in views["conv0"].statistics} == {"conv0", "conv2"}
    assert views["conv0"].statistic("conv2", Moments) is counted["conv2", Moments]
    assert views["conv0"].statistic("conv4", Moments) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(bad):
    model = NETS["chain"]()
    value = numpy_helper.to_array(model.graph.initializer[2]).copy()
    value[0, 0, 0, 0] = bad
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(value, model.graph.initializer[2].name))
    with pytest.raises(OnnxpruneError, match=f"'{model.graph.initializer[2].name}' .*NaN or infinity"):
        views_of(model)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_precisions_are_seen_in_single(kind):
    net = Net(13, kind=kind)
    x = net.relu(net.gemm("x", 4, 6))
    _, _, views = views_of(net.model((4,), net.gemm(x, 6, 3)))
    view = next(iter(views.values()))
    assert view.makers[0].weight.dtype == view.readers[0].columns.dtype == torch.float32


def test_a_vector_reads_channels_as_a_matrix_does():
    """A MatMul with weights of one axis: one output, without an axis of its own."""
    from tests.graph.nets import net, node, values

    nodes = [node("MatMul", "x w1", "h", name="one"), node("Relu", "h", "r"), node("MatMul", "r w2", "y", name="two")]
    model = net(nodes, {"w1": values(5, 7), "w2": values(7)}, {"x": ["N", 5]})
    _, _, views = views_of(model)
    (reader,) = views["one"].readers
    np.testing.assert_array_equal(reader.weight[reader.positions].reshape(-1), values(7))
