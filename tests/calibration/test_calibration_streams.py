"""Functions in files, iterables and tensors: their samples are taken, their failures named, and nothing is left behind."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

from onnxprune.calibration.sources import InputSpec, open_source, split
from onnxprune.errors import DataError

F32 = np.dtype(np.float32)
SPEC = InputSpec("x", F32, (None, 3, 4))
X = np.random.default_rng(0).standard_normal((10, 3, 4)).astype(np.float32)


def take(source):
    return np.concatenate([batch["x"] for batch in source.batches(4)])


@pytest.mark.parametrize(
    ("code", "function", "words"),
    [
        ("def f(): return 1 / 0", ":f", "ZeroDivisionError"),
        ("def f():\n    yield [1.0]\n    raise KeyError('late')", ":f", "late"),
        ("import nothing_of_the_kind", ":f", "nothing_of_the_kind"),
        ("raise SystemExit(3)", ":f", "SystemExit"),
        ("x = 1", ":f", "no function 'f'"),
        ("x = 1", "", "no function 'load_data'"),
        ("def f(): return []", ":f", "no samples"),
        ("def f(): return 3", ":f", "TypeError"),
    ],
)
def test_a_function_that_fails_is_named_with_its_message(tmp_path, code, function, words):
    (tmp_path / "s.py").write_text(code)
    path = list(sys.path)
    with pytest.raises(DataError, match=words) as caught:
        open_source(f"{tmp_path / 's.py'}{function}", [InputSpec("x", F32, (None, 1))])
    assert "s.py" in str(caught.value)
    assert sys.path == path


def test_a_function_may_give_arrays_and_use_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_the_loader.py").write_text("VALUE = 5.0")
    (tmp_path / "s.py").write_text(
        "import numpy\nfrom neighbour_of_the_loader import VALUE\ndef load_data(): return {'x': numpy.full((2, 3, 4), VALUE)}"
    )
    assert take(open_source(tmp_path / "s.py", [SPEC])).tolist() == np.full((2, 3, 4), 5.0).tolist()


def test_a_script_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.py"):
        open_source(f"{tmp_path}/nothing.py:f", [SPEC])


def test_errors_of_the_callers_own_iterable_are_left_alone():
    def breaks():
        yield X[0]
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        open_source(breaks(), [SPEC])


def test_a_used_up_iterator_is_recognised():
    with pytest.raises(DataError, match="gave no samples"):
        open_source(iter([]), [SPEC])


def test_torch_tensors_and_loaders_are_taken():
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.tensor(X), torch.zeros(10)), batch_size=3)
    np.testing.assert_array_equal(take(open_source(loader, [SPEC])), X)
    half = torch.tensor(X).bfloat16().requires_grad_()
    np.testing.assert_array_equal(take(open_source(half, [SPEC])), half.detach().float().numpy())


def test_an_endless_iterable_is_read_no_further_than_needed():
    def endless():
        yield from X[:3]
        pytest.fail("read too far")

    assert open_source(endless(), [SPEC], samples=3).count == 3


def test_what_was_kept_on_disk_goes_with_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = open_source(iter(X), [SPEC], samples=100)
    rest, held = split(source, 0.5)
    del source, rest
    gc.collect()
    assert len(list(tmp_path.iterdir())) == 1
    assert len(take(held)) == 5
    del held
    gc.collect()
    assert list(tmp_path.iterdir()) == []
