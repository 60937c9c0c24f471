"""`onnxprune prune`: options reach the library, reports reach their places, gates become exit codes."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

FAILED = {"expression": "top1_agreement<0.95", "value": 0.9, "passed": False}


def test_defaults_are_left_to_the_library(run, library, model):
    assert run(model, "--ratio", "0.4").exit_code == 0
    assert callable(library.calls[0].pop("progress"))  # where an interrupt is noticed, watched or not
    assert library.calls == [
        {
            "model": "net.onnx", "method": "coreset-channel", "ratio": 0.4, "target": None, "data": None, "test_data": None,
            "labels": None, "budget": "auto", "align": "auto", "repair": "auto", "sequential": None, "reweigh": True,
            "beta": None, "options": {}, "only": (), "skip": (), "kinds": (), "through_norms": False, "keep_ends": False,
            "pattern": None, "epsilon": None, "guarantee_labels": None, "sparse_storage": False,
            "device": "auto", "threads": 1, "seed": 0, "samples": 1024, "held_out": 0.2, "batch": 32,
            "input_shapes": None, "mean": None, "std": None, "layout": "auto", "latency": True, "gates": (),
            "output": "net.pruned.onnx",
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "key", "value"),
    [
        ("--method l1-channel", "method", "l1-channel"),
        ("--data d.npz", "data", "d.npz"),
        ("--test-data t.npz", "test_data", "t.npz"),
        ("--test_data t_t.npz", "test_data", "t_t.npz"),
        ("--labels y.npy", "labels", "y.npy"),
        ("--budget global", "budget", "global"),
        ("--align 8", "align", 8),
        ("--repair least-squares", "repair", "least-squares"),
        ("--repair least_squares", "repair", "least-squares"),
        ("--sequential", "sequential", True),
        ("--parallel", "sequential", False),
        ("--no-reweigh", "reweigh", False),
        ("--beta 2.5", "beta", 2.5),
        ("--option tries=3 --option kind=a=b --option exact=true", "options", {"tries": 3, "kind": "a=b", "exact": True}),
        ("--only a* --only b", "only", ("a*", "b")),
        ("--through-norms", "through_norms", True),
        ("--keep-ends", "keep_ends", True),
        ("--sparse-storage", "sparse_storage", True),
        ("--kind neuron,head --kind head-width", "kinds", ("neuron", "head", "head-width")),
        ("--skip head", "skip", ("head",)),
        ("--device cuda:1", "device", "cuda:1"),
        ("--threads 4", "threads", 4),
        ("--seed 7", "seed", 7),
        ("--samples 64", "samples", 64),
        ("--held-out 0", "held_out", 0.0),
        ("--batch 8", "batch", 8),
        ("--input-shape x:1,3,8,8 --input-shape a:b:[2x4]", "input_shapes", {"x": (1, 3, 8, 8), "a:b": (2, 4)}),
        ("--input-shape 1x3x8x8", "input_shapes", {"": (1, 3, 8, 8)}),
        ("--mean 0.485,0.456,0.406", "mean", (0.485, 0.456, 0.406)),
        ("--std 0.5", "std", (0.5,)),
        ("--layout nhwc", "layout", "nhwc"),
        ("--no-latency", "latency", False),
        ("--fail-if cosine<0.9 --fail-if logits.max_abs>1", "gates", ("cosine<0.9", "logits.max_abs>1")),
        ("-o small.onnx", "output", "small.onnx"),
        ("small.onnx", "output", "small.onnx"),
        ("--dry-run", "output", None),
    ],
)
def test_options_reach_the_library(run, library, model, args, key, value):
    result = run(model, "--ratio", "0.4", *args.split())
    assert result.exit_code == 0, result.stderr
    assert library.calls[0][key] == value


def test_target_instead_of_ratio(run, library, model):
    assert run(model, "--target", "macs=0.6").exit_code == 0
    assert (library.calls[0]["ratio"], library.calls[0]["target"]) == (None, "macs=0.6")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "say how much should go"),
        ("--ratio 0.4 --target macs=0.6", "not by --ratio and --target together"),
        ("--pattern 2:4 --ratio 0.5", "not by --ratio and --pattern together"),
        ("--ratio 1", "less than 1"),
        ("--ratio -0.1", "at least 0"),
        ("--ratio nan", "nan is not"),
        ("--ratio much", "not a number"),
        ("--target flops=0.5", "macs=0.6"),
        ("--target macs", "macs=0.6"),
        ("--target macs=0", "more than 0"),
        ("--target macs=1.1", "at most 1"),
        ("--ratio 0.4 --align 0", "positive number"),
        ("--ratio 0.4 --device gpu", "cuda:N"),
        ("--ratio 0.4 --repair leastsquares", "least-squares"),
        ("--ratio 0.4 --beta 0", "x>0"),
        ("--ratio 0.4 --samples 0", "x>=1"),
        ("--ratio 0.4 --held-out 1", "less than 1"),
        ("--ratio 0.4 --mean a,b", "not a number"),
        ("--ratio 0.4 --mean inf", "not a list of numbers"),
        ("--ratio 0.4 --input-shape x:1,0,8", "not a shape"),
        ("--ratio 0.4 --input-shape x", "not a shape"),
        ("--ratio 0.4 --option tries", "name=value"),
        ("--ratio 0.4 --fail-if cosine", "cannot read the gate"),
        ("--ratio 0.4 --fail-if cosinus<0.9", "did you mean 'cosine'"),
        ("--ratio 0.4 a.onnx -o b.onnx", "two outputs"),
        ("--ratio 0.4 -o net.onnx", "never overwritten"),
        ("--ratio 0.4 -o ./net.onnx", "never overwritten"),
        ("--ratio 0.4 -o no/such/folder.onnx", "there is no folder"),
        ("--ratio 0.4 --json no/such.json", "there is no folder"),
        ("--ratio 0.4 --summary .", "is a folder"),
        ("--ratio 0.4 --json net.onnx", "net.onnx is an input, which is never overwritten"),
        ("--ratio 0.4 --data d.npz --summary ./d.npz", "d.npz is an input"),
        ("--ratio 0.4 --json r --summary ./r", "two results"),
        ("--ratio 0.4 --json net.pruned.onnx", "two results"),
        ("--ratio 0.4 --option draws=1 --option draws=2", "'--option': 'draws' is given twice"),
        ("--ratio 0.4 --option beta=1 --beta 2", "by --beta and by --option"),
        ("--ratio 0.4 --input-shape x:1,3 --input-shape x:2,3", "'--input-shape': 'x' is given twice"),
        ("--ratio 0.4 --input-shape 1,3 --input-shape 2,3", "'--input-shape': it is given twice"),
        ("--ratio 0.4 --data d.npz --test-data t.npz --held-out 0.2", "leave one of them out"),
        ("--ratio 0.4 -o -", "'-' is no file"),
        ("--ratio 0.4 -", "'-' is no file"),
        ("--ratio 0.4 --summary -", "'-' is no file"),
        ("--ratio 0.4 --kind ,", "it names no kind"),
        ("--ratio 40%", "write 0.4"),
        ("--ratio 40", "write 0.4"),
        ("--ratio 0,4", "write 0.4"),
    ],
)
def test_mistakes_are_found_before_any_work(run, library, model, args, message):
    result = run(model, *args.split())
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not library.calls


@pytest.mark.parametrize("args", ["-o w.bin", "--json w.bin", "--summary ./w.bin", "-o ./w.bin"])
def test_the_data_of_a_model_is_an_input_too(run, library, model, args):
    made = helper.make_model(helper.make_graph([], "g", [], [], [numpy_helper.from_array(np.ones(4, np.float32), "w")]))
    onnx.save(made, model, save_as_external_data=True, location="w.bin", size_threshold=0)
    result = run(model, "--ratio", "0.4", *args.split())
    assert result.exit_code == 2
    assert "w.bin is an input, which is never overwritten" in result.stderr
    assert not library.calls


def test_the_script_that_makes_samples_is_an_input_too(run, library, model):
    Path("make.py").write_text("def samples(): ...\n")
    result = run(model, "--ratio", "0.4", "--data", "make.py:samples", "--json", "make.py")
    assert result.exit_code == 2
    assert "make.py is an input" in result.stderr


def test_text_goes_to_stdout(run, library, model):
    result = run(model, "--ratio", "0.4")
    assert "written to models/resnet56_cifar10.pruned.onnx" in result.stdout
    assert result.stderr == ""
    assert all(line == line.rstrip() for line in result.stdout.splitlines())


def test_json_alone_on_stdout_whatever_else_prints(run, library, model):
    library.prints = "*** EP Error ***"
    result = run(model, "--ratio", "0.4", "--json", "-")
    assert json.loads(result.stdout) == library.report
    assert "*** EP Error ***" in result.stderr
    assert "parameters" in result.stderr


def test_json_and_summary_files(run, library, model):
    result = run(model, "--ratio", "0.4", "--json", "r.json", "--summary", "r.md", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert json.loads(Path("r.json").read_text("utf-8")) == library.report
    assert Path("r.md").read_text("utf-8").startswith("### onnxprune")


def test_github_summary_is_appended(run, library, model, monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    assert run(model, "--ratio", "0.4").exit_code == 0
    assert page.read_text("utf-8").startswith("before\n### onnxprune")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "page.md"))
    result = run(model, "--ratio", "0.4")
    assert result.exit_code == 0
    assert "cannot write GITHUB_STEP_SUMMARY" in result.stderr


def test_a_failed_gate_is_1_after_everything_was_written(run, library, model):
    library.report["gates"] = [FAILED]
    result = run(model, "--ratio", "0.4", "--fail-if", "top1_agreement<0.95", "--json", "r.json")
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert json.loads(Path("r.json").read_text("utf-8"))["gates"] == [FAILED]


def test_quiet_still_names_the_failed_gate(run, library, model):
    library.report["gates"] = [FAILED]
    result = run(model, "--ratio", "0.4", "-q")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "onnxprune: gate failed: top1_agreement<0.95: it is 0.9\n"


def test_passed_gates_are_0(run, library, model):
    library.report["gates"] = [FAILED | {"passed": True}]
    assert run(model, "--ratio", "0.4").exit_code == 0


def test_verbose_lists_every_group(run, library, model):
    assert "/layer1/layer1.0/conv1" not in run(model, "--ratio", "0.4").stdout
    assert "/layer1/layer1.0/conv1" in run(model, "--ratio", "0.4", "-v").stdout


def test_a_place_that_is_no_file_stays_what_it_is(run, library, model, tmp_path):
    assert run(model, "--ratio", "0.4", "-q", "--json", "/dev/null", "--summary", "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()


def test_figures_through_a_link_reach_the_file_behind_it(run, library, model, tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    assert run(model, "--ratio", "0.4", "-q", "--json", "link.json").exit_code == 0
    assert json.loads((tmp_path / "real.json").read_text("utf-8"))["schema"] == 1
    assert (tmp_path / "link.json").is_symlink()
