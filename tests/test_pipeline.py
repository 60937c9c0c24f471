"""The main job end to end, on the bundled sample and a tiny net: every repair, budget and target; what the report promises."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune.errors import NothingToPruneError, UnknownNameError, UsageError
from onnxprune.figures import Accuracy, Deviation, GroupFigures, LatencyFigures, ModelFigures, PinFigures, Report
from onnxprune.report.json import render
from onnxprune.testing import tiny_network

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
CNN = SAMPLES / "models" / "digits_cnn.onnx"
LENET = SAMPLES / "models" / "digits_lenet300.onnx"
DATA, TEST, LABELS = (SAMPLES / "data" / name for name in ("digits_calibration.npz", "digits_test.npz", "digits_test_labels.npy"))
DIGITS = {"data": DATA, "test_data": TEST, "labels": LABELS, "latency": False}


def images(count=80, seed=0):
    """Inputs of the tiny network with a few degrees of freedom."""
    basis = np.random.default_rng(99).standard_normal((5, 3, 8, 8))
    return np.tensordot(np.random.default_rng(seed).standard_normal((count, 5)), basis, 1).astype(np.float32) / 2


def tiny(**more):
    fields = {"ratio": 0.5, "data": images(), "latency": False, "samples": 64, "batch": 6}
    fields |= more
    if "target" in more:
        del fields["ratio"]
    return onnxprune.prune(fields.pop("model", None) or tiny_network(), **fields)


def weights(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


# --- the sample that the README shows


def test_the_trained_sample_keeps_its_accuracy():
    result = onnxprune.prune(CNN, ratio=0.4, **DIGITS)
    accuracy = result.report["accuracy"]
    assert accuracy["original"] > 0.97
    assert accuracy["pruned"] > accuracy["original"] - 0.02
    assert result.report["pruned"]["macs"] < 0.8 * result.report["original"]["macs"]
    onnx.checker.check_model(result.model, full_check=True)


def test_repair_is_what_keeps_it():
    plain, repaired = (onnxprune.prune(CNN, ratio=0.6, repair=repair, **DIGITS) for repair in ("none", "least-squares"))
    assert repaired.report["accuracy"]["pruned"] > plain.report["accuracy"]["pruned"] + 0.02


def test_hidden_units_alone():
    result = onnxprune.prune(LENET, "coreset-neuron", 0.4, **DIGITS)
    assert result.report["accuracy"]["pruned"] >= result.report["accuracy"]["original"] - 0.005
    assert {g["kind"] for g in result.report["groups"]} == {"neuron"}


# --- repairs, budgets, targets


WAYS = [("none", None), *itertools.product(["auto", "mean"], [True, False])]


@pytest.mark.parametrize("budget", ["auto", "uniform", "global"])
@pytest.mark.parametrize(("repair", "sequential"), WAYS)
def test_every_repair_with_every_budget(repair, budget, sequential):
    report = tiny(repair=repair, budget=budget, sequential=sequential, align=1).report
    asked = sum(g["channels"] for g in report["groups"]) * 0.5
    assert sum(g["kept"] for g in report["groups"]) == pytest.approx(asked, abs=1)
    assert report["proof"]["max_relative_difference"] < 1e-4
    assert report["repair"]["kind"] == ("least-squares" if repair == "auto" else repair)
    assert report["repair"]["mode"] == ("none" if repair == "none" else "sequential" if sequential else "parallel")
    assert bool(report["repair"]["layers"]) == (repair != "none")


def test_matched_moments_that_bring_layers_no_nearer_are_told_of():
    for ratio in (0.3, 0.9):
        report = tiny(repair="mean", ratio=ratio, method="magnitude", data=images(300), samples=240).report
        grew = [layer for layer in report["repair"]["layers"] if layer["error_after"] > 1.1 * layer["error_before"]]
        told = [text for text in report["warnings"] if "mean and variance were matched" in text]
        assert bool(grew) == bool(told) == (ratio == 0.9)
    most = max(grew, key=lambda layer: layer["error_after"] / layer["error_before"])
    assert f"the error of {len(grew)} of 4 layers grew" in told[0]
    assert f"in '{most['layer']}' from {most['error_before']:.2g} to {most['error_after']:.2g}; compare with --repair" in told[0]


@pytest.mark.parametrize("budget", ["auto", "uniform", "global"])
@pytest.mark.parametrize(("kind", "key"), [("macs", "macs"), ("params", "parameters"), ("bytes", "parameters")])
def test_a_target_is_met_and_not_exceeded(kind, key, budget):
    report = tiny(target=f"{kind}=0.6", budget=budget, align=1).report
    left = report["pruned"][key] / report["original"][key]
    assert 0.45 < left <= 0.6 + 1e-9


def test_a_latency_target_is_measured(monkeypatch):
    """With a clock that tells the multiplications, so that the machine's mood does not matter."""
    from onnxprune.graph import find, prepare
    from onnxprune.jobs import job

    def macs(model):
        return find(prepare(model)[0]).cost().macs

    def measured(original, pruned, feeds, **more):
        times = macs(original), macs(pruned)
        fields = {"threads": 1, "runs": 1, "batch": 1, "original_p90_ms": 0.0, "pruned_p90_ms": 0.0}
        return LatencyFigures(original_ms=times[0], pruned_ms=times[1], speedup=times[0] / times[1], **fields)

    monkeypatch.setattr(job, "time_models", measured)
    report = tiny(target="latency=0.5", latency=True, align=1).report
    assert 0.4 < 1 / report["latency"]["speedup"] <= 0.5
    assert report["original"]["latency_ms"] > report["pruned"]["latency_ms"]
    with pytest.raises(UsageError, match=r"latency of 0\.001 .* cannot be reached"):
        tiny(target="latency=0.001", align=1)


def test_a_latency_target_on_the_real_clock():
    report = onnxprune.prune(CNN, target="latency=0.95", data=DATA, latency=False).report
    assert report["pruned"]["macs"] < report["original"]["macs"]


def test_an_unreachable_target_says_what_is_reachable():
    with pytest.raises(UsageError, match=r"0\.001 cannot be reached: 0\.\d+ is left"):
        tiny(target="macs=0.001")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ratio": None}, "how much"),
        ({"ratio": 0.5, "target": "macs=0.5"}, "how much"),
        ({"ratio": 1.0}, "ratio of 1.0"),
        ({"ratio": -0.1}, "ratio of -0.1"),
        ({"ratio": float("nan")}, "ratio of nan"),
        ({"ratio": None, "target": "macs=1.5"}, "macs=1.5"),
        ({"ratio": None, "target": "flops=0.5"}, "flops=0.5"),
        ({"ratio": None, "target": "macs"}, "'macs'"),
        ({"repair": "leastsquares"}, "did you mean 'least-squares'"),
        ({"budget": "globl"}, "did you mean 'global'"),
        ({"method": "corset-channel"}, "did you mean 'coreset-channel'"),
        ({"align": "wide"}, "align"),
        ({"only": ["layer9"]}, "no group or layer 'layer9'"),
        ({"repair": "none", "sequential": True}, "^sequential has no meaning where no layer is refitted"),
        ({"repair": "none", "sequential": False}, "^parallel has no meaning where no layer is refitted"),
        ({"reweigh": False}, "no reweigh has no meaning where layers are refitted; .* --repair none"),
        ({"ratio": None, "epsilon": 0.5, "sequential": False}, "parallel has no meaning"),
        ({"ratio": None, "epsilon": 0.5, "align": 8}, "align .8. has no meaning where an error says"),
        ({"ratio": None, "epsilon": 0.5, "reweigh": False}, "a bound holds for reweighed layers alone"),
        ({"ratio": None, "pattern": "2:4", "method": "magnitude", "budget": "row"}, "leave --budget out"),
    ],
)
def test_requests_that_make_no_sense_are_refused_with_a_remedy(fields, words):
    with pytest.raises(UsageError, match=words) as caught:
        onnxprune.prune(tiny_network(), **({"ratio": 0.5, "data": images(), "latency": False} | fields))
    assert caught.value.remedy


# --- which groups


def test_only_and_skip():
    names = [g["name"] for g in tiny().report["groups"]]
    assert names == ["layer1", "layer2", "layer3"]

    def touched(**more):
        return {g["name"] for g in tiny(align=1, **more).report["groups"] if g["kept"] < g["channels"]}

    assert touched(only=["layer1"]) == {"layer1"}
    assert touched(skip=["layer1"]) == {"layer2", "layer3"}
    assert touched(only=["layer[12]"], skip=["layer1"]) == {"layer2"}
    assert touched(only=["w4"]) == {"layer3"}, "a weight names the groups that it belongs to"
    with pytest.raises(NothingToPruneError, match="--only and --skip leave no group"):
        tiny(only=["layer1"], skip=["layer*"])
    with pytest.raises(UnknownNameError):
        tiny(skip=["layer7"])


def test_what_is_skipped_is_as_it_was():
    model = tiny_network()
    result = tiny(model=model, only=["layer1"], align=1)
    before, after = weights(model), weights(result.model)
    # layer1 loses its outputs, layer2 its inputs and is refitted: what lies further back is refitted too, its makers are not.
    assert after["w3"].shape == before["w3"].shape
    assert np.array_equal(after["bn3.var"], before["bn3.var"])
    plain = weights(tiny(model=model, only=["layer1"], repair="none", reweigh=False).model)
    for name in ("w3", "w4", "bn2.weight", "bn3.weight"):
        np.testing.assert_array_equal(plain[name], before[name])


def test_neuron_methods_leave_convolutions_alone():
    report = tiny(method="random-neuron").report
    assert {g["name"]: g["kept"] < g["channels"] for g in report["groups"]} == {"layer1": False, "layer2": False, "layer3": True}


# --- determinism and purity


@pytest.mark.parametrize("method", ["coreset-channel", "random-channel"])
def test_the_same_seed_gives_the_same_bytes_another_seed_does_not(method):
    def bytes_of(seed):
        return tiny(method=method, seed=seed, align=1).model.SerializeToString(deterministic=True)

    assert bytes_of(0) == bytes_of(0)
    assert bytes_of(0) != bytes_of(1)


def test_the_callers_model_and_data_are_not_touched():
    model, data = tiny_network(), images()
    before, copy = model.SerializeToString(deterministic=True), data.copy()
    tiny(model=model, data=data)
    assert model.SerializeToString(deterministic=True) == before
    np.testing.assert_array_equal(data, copy)


@pytest.mark.parametrize("path", [CNN, LENET], ids=lambda p: p.stem)
def test_without_repair_every_weight_is_the_original_at_the_kept_indices(path):
    """The promise of the report: `removed` says it all."""
    result = onnxprune.prune(path, ratio=0.4, repair="none", reweigh=False, data=DATA, latency=False, align=1)
    removed, after = result.report["removed"], weights(result.model)
    assert removed
    for name, value in weights(onnx.load(path)).items():
        expected = value
        for axis, gone in removed.get(name, {}).items():
            expected = np.delete(expected, gone, axis=int(axis))
        np.testing.assert_array_equal(after[name], expected)
        assert after[name].tobytes() == expected.tobytes()


def test_reweighing_is_the_papers_and_can_be_switched_off():
    plain, paper = (tiny(repair="none", reweigh=on, align=1, budget="uniform") for on in (False, True))
    assert plain.report["removed"] == paper.report["removed"]
    a, b = weights(plain.model), weights(paper.model)
    for name, axis in (("w2", 1), ("w3", 1), ("w4", 1)):  # readers: one factor per kept channel
        factor = b[name] / a[name]
        rest = tuple(i for i in range(factor.ndim) if i != axis)
        np.testing.assert_allclose(factor, np.broadcast_to(factor.mean(rest, keepdims=True), factor.shape), rtol=1e-4)
        assert not np.allclose(factor, 1)
    np.testing.assert_array_equal(a["w1"], b["w1"])


def test_names_metadata_and_version_stay():
    model = tiny_network()
    model.producer_name, model.doc_string = "me", "about it"
    model.metadata_props.add(key="mine", value="1")
    model.graph.node[0].doc_string = "first"
    result = tiny(model=model).model
    assert (result.ir_version, result.producer_name, result.doc_string) == (8, "me", "about it")
    assert [n.name for n in result.graph.node] == [n.name for n in model.graph.node]
    assert result.graph.node[0].doc_string == "first"
    props = {p.key: p.value for p in result.metadata_props}
    assert props["mine"] == "1"
    assert props["onnxprune.method"] == "coreset-channel"
    assert {f"onnxprune.{key}" for key in ("version", "options", "ratio", "seed", "sha256_source")} <= set(props)


# --- the report


def keys_of(kind):
    return set(kind.__annotations__)


def test_the_report_is_the_schema_and_json(tmp_path):
    where = {"data": DATA, "test_data": TEST, "labels": LABELS, "output": tmp_path / "out.onnx"}
    result = onnxprune.prune(CNN, ratio=0.3, **where, gates=["top1_agreement<0.5", "relative_l2<1e-9"])
    report = result.report
    assert set(report) == keys_of(Report)
    assert list(report) == list(Report.__annotations__)
    for key in ("original", "pruned"):
        assert set(report[key]) == keys_of(ModelFigures)
        assert all(v is not None for v in report[key].values())
    assert all(set(g) == keys_of(GroupFigures) for g in report["groups"])
    assert all(set(p) == keys_of(PinFigures) for p in report["pinned"])
    assert report["pinned"]
    assert set(report["latency"]) == keys_of(LatencyFigures)
    assert set(report["accuracy"]) == keys_of(Accuracy)
    assert all(set(d) == keys_of(Deviation) for d in report["deviation"].values())
    assert [set(g) for g in report["gates"]] == [{"expression", "value", "passed"}] * 2
    assert [g["passed"] for g in report["gates"]] == [True, True]  # a gate fails where its expression is true
    assert all(seconds >= 0 for seconds in report["timings"].values())
    assert report["pruned"]["path"] == str(tmp_path / "out.onnx")
    assert report["pruned"]["bytes"] == (tmp_path / "out.onnx").stat().st_size
    assert json.loads(render(report)) == json.loads(json.dumps(json.loads(render(report))))


def test_gates_on_any_figure_and_on_none(tmp_path):
    asked = {"method": "magnitude", "ratio": 0.5, "output": tmp_path / "out.onnx"}
    for gate in ("timings.foo>1", "sparsity.shar<1", "proof.none>1"):
        with pytest.raises(UnknownNameError):
            tiny(**asked, gates=[gate])
        assert not list(tmp_path.iterdir())
    figures = tiny(**asked, gates=["sparsity.share<0.4", "weights.w2.zeros<1", "timings.save>99"]).report["gates"]
    assert [gate["passed"] for gate in figures] == [True, True, True]


def test_the_figures_of_the_pruned_model_are_those_of_the_file(tmp_path):
    result = onnxprune.prune(CNN, ratio=0.3, data=DATA, latency=False)
    result.save(tmp_path / "out.onnx")
    network = onnxprune.inspect(tmp_path / "out.onnx")
    assert result.report["pruned"]["macs"] == network.cost().macs
    kept = {g["name"]: g["kept"] for g in result.report["groups"]}
    assert {g.name: g.size for g in network.groups} == kept
    whole = onnxprune.inspect(CNN)
    assert whole.cost(kept).macs == network.cost().macs
    assert result.report["original"]["macs"] == whole.cost().macs


def test_undefined_figures_are_null_in_json():
    """A single calibration sample: nothing to hold out, layers that may have no error to speak of."""
    report = tiny(data=images(1)).report
    text = render(report)
    assert "NaN" not in text
    assert "Infinity" not in text
    json.loads(text)


def test_without_data_it_is_noise_and_says_so():
    report = tiny(data=None).report
    assert any("noise" in warning for warning in report["warnings"])
    assert report["data"]["real"] is False
    assert not any("noise" in warning for warning in tiny().report["warnings"])


def test_test_data_of_the_report_are_not_those_of_the_calibration(monkeypatch):
    """What the models are judged by was never fitted to: watch both streams go by."""
    from onnxprune.calibration import samples as module

    seen = {}
    real = module.split

    def watched(source, held_out):
        calibration, test = real(source, held_out)
        seen.update(calibration=set(calibration.numbers.tolist()), test=set(test.numbers.tolist()))
        return calibration, test

    monkeypatch.setattr(module, "split", watched)
    report = tiny().report
    assert report["data"]["held_out"]
    assert seen["calibration"]
    assert seen["test"]
    assert not seen["calibration"] & seen["test"]


def test_labels_may_be_arrays_lists_or_files():
    test = np.load(TEST)
    labels = np.load(LABELS)
    found = [
        onnxprune.prune(CNN, ratio=0.3, data=DATA, test_data=dict(test), labels=given, latency=False).report["accuracy"]
        for given in (LABELS, str(LABELS), labels, labels.tolist())
    ]
    assert all(f == found[0] for f in found)
    assert onnxprune.prune(CNN, ratio=0.3, data=DATA, latency=False).report["accuracy"] is None


def test_labels_of_all_the_data_follow_the_part_that_was_held_out():
    result = onnxprune.prune(CNN, ratio=0.0, data=dict(np.load(TEST)), labels=np.load(LABELS), latency=False)
    assert result.report["accuracy"]["original"] > 0.95


def test_ratio_zero_is_the_original():
    model = tiny_network()
    result = tiny(model=model, ratio=0.0)
    for name, value in weights(model).items():
        assert weights(result.model)[name].tobytes() == value.tobytes()
    assert result.report["removed"] == {}
    assert all(d["max_abs"] == 0 for d in result.report["deviation"].values())


def test_alignment_is_said_and_kept():
    report = onnxprune.prune(CNN, ratio=0.4, data=DATA, latency=False, align=8).report
    for group in report["groups"]:
        assert group["kept"] % 8 == 0 or group["kept"] == group["channels"]
    assert report["alignment"]["align"] == 8


def test_progress_is_told_by_stage():
    told = []
    tiny(progress=lambda stage, share: told.append((stage, share)))
    stages = {stage for stage, _ in told}
    assert {"looking at the model", "weighing the layers", "repairing"} <= stages
    assert all(0 <= share <= 1 for _, share in told)


def test_an_unlabelled_run_does_not_read_labels_and_a_wrong_count_is_refused():
    with pytest.raises(UsageError, match="labels"):
        onnxprune.prune(CNN, ratio=0.3, data=DATA, test_data=TEST, labels=[1, 2, 3], latency=False)


def test_saving_over_the_input_is_refused(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(tiny_network(), path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="is the input"):
        tiny(model=path, output=path)
    result = tiny(model=path)
    with pytest.raises(UsageError, match="is the input"):
        result.save(path)
    assert path.read_bytes() == before
