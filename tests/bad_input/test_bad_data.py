"""Sample inputs, labels and scripts that are missing, broken, of the wrong kind, or hostile."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from onnx import helper
from workplace import built, tensor

IMAGES = pytest.importorskip("PIL.Image")
ROW = np.ones((20, 8), np.float32)


def with_value(value):
    array = ROW.copy()
    array[7, 3] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.ones((20, 9), np.float32)}, ["bad.npz", "'x'", "(20, 9)", "wants (?, 8)"]),
        ({"x": np.ones((20, 8, 1, 1), np.float32)}, ["bad.npz", "(20, 8, 1, 1)", "wants (?, 8)"]),
        ({"x": np.float32(3)}, ["bad.npz", "wants (?, 8)"]),
        ({"y": ROW, "z": ROW}, ["bad.npz", "no array for model input 'x'", "y, z"]),
        ({}, ["bad.npz", "no array for model input 'x'"]),
        ({"x": with_value(np.nan)}, ["bad.npz", "sample 7", "NaN or infinity"]),
        ({"x": with_value(-np.inf)}, ["bad.npz", "sample 7", "NaN or infinity"]),
        ({"x": ROW.astype(np.float64) * 1e300}, ["bad.npz", "do not fit into float32"]),
        ({"x": np.ones((0, 8), np.float32)}, ["bad.npz", "is empty"]),
        ({"x": np.full((20, 8), "one")}, ["bad.npz", "holds <U3", "array of numbers"]),
        ({"x": ROW.astype(np.complex64)}, ["bad.npz", "complex64"]),
    ],
    ids=["width", "rank", "scalar", "names", "no arrays", "nan", "inf", "overflow", "empty", "strings", "complex"],
)
def test_arrays_that_do_not_fit(prune, place, arrays, says):
    np.savez("bad.npz", **arrays)
    prune("--data", "bad.npz", says=says)
    prune("--data", "data.npz", "--test-data", "bad.npz", says=says)


class Bomb:
    """Unpickling this makes a file."""

    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize("kind", ["npz", "npy", "disguised npy", "disguised npz"])
def test_pickles_are_never_loaded(prune, place, kind):
    array = np.array([Bomb()], object)
    name = f"bad.{kind[-3:]}"
    if kind == "npz":
        np.savez(name, x=array)
    elif kind == "npy":
        np.save(name, array)
    elif kind == "disguised npy":
        (place / name).write_bytes(pickle.dumps(Bomb()))
    else:
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(content, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("x.npy", content.getvalue() + pickle.dumps(Bomb()))
    prune("--data", name, says=[name])
    prune("--data", "data.npz", "--labels", name, says=[name, "Python objects"])
    assert not (place / "exploded").exists()


@pytest.mark.parametrize("name", ["bad.npz", "bad.npy"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_broken_archives(prune, place, name, damage):
    (np.savez if name == "bad.npz" else np.save)(name, np.ones((64, 8), np.float32))
    whole = (place / name).read_bytes()
    (place / name).write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello"}[damage])
    prune("--data", name, says=[name])


def test_flipped_bits_in_an_archive(prune, place):
    np.savez_compressed("bad.npz", x=np.random.default_rng(0).standard_normal((64, 8), np.float32))
    content = bytearray((place / "bad.npz").read_bytes())
    content[600] ^= 0xFF
    (place / "bad.npz").write_bytes(content)
    prune("--data", "bad.npz", says=["bad.npz"])


@pytest.mark.parametrize("option", ["--data", "--test-data", "--labels"])
def test_missing_files(prune, place, option):
    given = ["--data", "data.npz"] if option != "--data" else []
    prune(*given, option, "nowhere.npz", says=["nowhere.npz"])


def test_options_of_images_without_images(prune, refused):
    prune("--data", "data.npz", "--mean", "0.5", "--std", "2", says=["mean and std are for images", "npz file data.npz"])
    refused("compare", "net.onnx", "net.onnx", "--data", "data.npz", "--layout", "nhwc", says=["layout is for images"])


def test_files_of_no_known_kind(prune, place):
    (place / "data.parquet").write_bytes(b"PAR1")
    prune("--data", "data.parquet", says=["data.parquet", ".npz"])


def test_empty_folder(prune, place):
    (place / "empty").mkdir()
    prune("--data", "empty", says=["empty holds no sample inputs"])


@pytest.fixture
def picture_model(place):
    """A convolutional net for pictures of 3 x 8 x 8."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Conv", ["a", "v"], ["y"], kernel_shape=[3, 3]),
    ]
    model = built(nodes, [tensor("w", 16, 3, 3, 3), tensor("v", 4, 16, 3, 3)], [("x", ("n", 3, 8, 8))], [("y", ("n", 4, 4, 4))])
    (place / "picture.onnx").write_bytes(model.SerializeToString())
    (place / "images").mkdir()
    for number in range(4):
        IMAGES.new("RGB", (10, 12), (number, 50, 200)).save(place / "images" / f"{number}.png")
    return "picture.onnx"


def test_a_broken_image_among_good_ones(prune, place, picture_model):
    (place / "images" / "2.png").write_bytes((place / "images" / "2.png").read_bytes()[:40])
    prune("--data", "images", model=picture_model, says=["2.png is no image that can be read", "remove or replace it"])


def test_a_text_file_named_as_an_image(prune, place, picture_model):
    (place / "images" / "1.jpg").write_text("hello")
    prune("--data", "images", model=picture_model, says=["1.jpg is no image that can be read"])


def test_images_for_a_model_without_images(prune, place, picture_model):
    prune("--data", "images", says=["images feed one input of rank 4", "x (?, 8)"])


@pytest.mark.parametrize(
    ("option", "says"),
    [(("--mean", "0.5,0.5"), "does not suit 3 channels"), (("--std", "0"), "not positive"), (("--layout", "nhwc"), "8 channels")],
)
def test_wrong_preprocessing(prune, place, picture_model, option, says):
    prune("--data", "images", *option, model=picture_model, says=[says])


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("def other(): pass", ["has no function 'load'"]),
        ("load = 3", ["has no function 'load'"]),
        ("def load(:", ["SyntaxError"]),
        ("import no_such_module", ["ModuleNotFoundError", "no_such_module"]),
        ("raise SystemExit(0)", ["SystemExit"]),
        ("def load(): raise RuntimeError('two\\nlines')", ["RuntimeError", "two lines"]),
        ("def load(needed): pass", ["TypeError", "needed"]),
        ("def load(): yield from ()", ["gave no samples"]),
        ("def load():\n  import numpy\n  yield numpy.ones((1, 8), 'f')\n  raise OSError('net gone')", ["OSError", "net gone"]),
        ("def load(): return None", ["data.py:load"]),
        ("def load(): return 7", ["data.py:load"]),
        ("def load(): yield 'words'", ["item 0"]),
        ("def load(): yield [[1, 2], [3]]", ["a sample is no array"]),
        ("def load():\n  import sys\n  sys.exit(5)", ["SystemExit"]),
    ],
    ids=["no function", "no callable", "syntax", "import", "exit", "raises", "arguments", "never yields", "raises late", "none",
         "number", "words", "ragged", "exits"],
)  # fmt: skip
def test_scripts(prune, place, script, says, monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    (place / "data.py").write_text(script)
    prune("--data", "data.py:load", says=says)


def test_missing_script(prune, place):
    prune("--data", "nothing.py:load", says=["nothing.py"])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros(10, int), ["10 labels for 64 samples"]),
        (np.zeros(65, int), ["65 labels for 64 samples"]),
        (np.full(64, 4), ["label 4", "0 .. 3"]),
        (np.full(64, -1), ["label -1", "0 .. 3"]),
        (np.full(64, "cat"), ["labels.npy", "not whole numbers"]),
        (np.full(64, 0.5), ["labels.npy", "not whole numbers"]),
        (np.zeros((64, 4)), ["labels.npy", "(64, 4)"]),
        (np.zeros(0, int), ["labels.npy", "(0,)"]),
        (np.full(64, np.nan), ["labels.npy", "not whole numbers"]),
    ],
    ids=["too few", "too many", "too large", "negative", "words", "halves", "one hot", "none", "nan"],
)
def test_labels(refused, place, labels, says):
    np.save("labels.npy", labels)
    usual = ("net.onnx", "--ratio", "0.4", "--no-latency", "--labels", "labels.npy")
    refused(*usual, "--data", "data.npz", says=says)
    refused(*usual, "--data", "data.npz", "--test-data", "data.npz", says=says)


def test_labels_of_noise(prune, place):
    prune("--labels", "labels.npy", says=["made-up noise", "--data"])


def test_labels_in_words(prune, place):
    (place / "labels.txt").write_text("cat\ndog\n")
    prune("--data", "data.npz", "--labels", "labels.txt", says=["labels.txt", "cat"])


def test_compare_of_strangers(refused, place, picture_model):
    refused("compare", "net.onnx", picture_model, "--data", "data.npz")


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, 1e15])
def test_samples_that_are_all_alike_are_poor_but_no_error(place, run, rows, value):
    np.save("alike.npy", np.full((rows, 8), value, np.float32))
    result = run("net.onnx", "--ratio", "0.4", "--no-latency", "--data", "alike.npy", "-q")
    assert result.exit_code == 0, result.stderr
