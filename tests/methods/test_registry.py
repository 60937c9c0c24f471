"""Methods are found by name: ours, those of other packages by entry point; mistakes in names are answered with suggestions."""

from __future__ import annotations

import pytest

from onnxprune.contract import ChannelMethod, method
from onnxprune.errors import OnnxpruneError, UnknownNameError, UsageError
from onnxprune.methods import METHODS, create


@pytest.fixture(autouse=True)
def _leaves_the_registry_alone():
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def announce(folder, module, source, entry):
    """A distribution as pip would install it into `folder`."""
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[onnxprune.methods]\n{entry}\n", encoding="utf-8")


SOURCE = """
from onnxprune.contract import ChannelMethod, method

@method
class Theirs(ChannelMethod):
    name = "theirs-channel"
    paper = "theirs"
    target = "channel"

    def score(self, view):
        return view.maker_norms
"""


def test_a_package_of_somebody_else_adds_a_method(tmp_path, monkeypatch):
    announce(tmp_path, "their_pruning", SOURCE, "theirs = their_pruning")
    monkeypatch.syspath_prepend(tmp_path)
    assert "theirs-channel" not in METHODS
    assert create("theirs-channel").name == "theirs-channel"


def test_a_broken_package_is_named_not_a_traceback(tmp_path, monkeypatch):
    announce(tmp_path, "broken_pruning", "raise RuntimeError('needs numpy 1')", "broken = broken_pruning")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"'broken_pruning'.*needs numpy 1") as caught:
        create("theirs-channel")
    assert caught.value.remedy
    assert create("l1-channel").name == "l1-channel", "our own methods do not need theirs"


def test_a_name_may_be_taken_once():
    class Second(ChannelMethod):
        name = "l1-channel"
        paper = "x"
        target = "channel"

        def score(self, view):
            return view.maker_norms

    with pytest.raises(OnnxpruneError, match=r"'l1-channel' is registered already by onnxprune\.methods\.norms"):
        method(Second)


def test_registering_the_same_class_twice_is_harmless():
    assert method(METHODS["l1-channel"]) is METHODS["l1-channel"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("coreset-chanel", "coreset-channel"), ("l1_channel", "l1-channel"), ("randm-kernel", "random-kernel"),
        ("coreset", "coreset-channel"), ("l1", "l1-channel"),
    ],
)  # fmt: skip
def test_a_near_miss_is_answered_with_what_was_meant(typed, meant):
    with pytest.raises(UnknownNameError, match=f"no method '{typed}'; did you mean .*'{meant}"):
        create(typed)


def test_an_unknown_option_is_answered_with_what_was_meant():
    with pytest.raises(UnknownNameError, match="no option of method 'coreset-channel' called 'bete'; did you mean 'beta'"):
        create("coreset-channel", bete=2)


def test_every_method_says_what_it_is():
    for name, cls in METHODS.items():
        assert cls.__doc__, name
        assert cls.paper, name
        for option in cls.options.values():
            assert option.help, name


OURS = [(name, option) for name, cls in sorted(METHODS.items()) for option in cls.options]


@pytest.mark.parametrize(("name", "option"), OURS)
def test_an_option_of_the_wrong_kind_is_refused_by_every_method(name, option):
    """As JSON on the command line may give it: lists, null, true, NaN and infinity crashed or were taken for numbers."""
    default = METHODS[name].options[option].default
    wrong = [[1], {"a": 1}, float("nan"), float("inf")]
    wrong += [] if default is None else [None]
    wrong += [0, 1, "yes"] if isinstance(default, bool) else [True]
    for value in wrong:
        with pytest.raises(UsageError):
            create(name, **{option: value})
    create(name, **{option: default})


@pytest.mark.parametrize(("name", "option"), [o for o in OURS if o[1] in ("patches", "candidates", "rounds", "steps", "block")])
def test_counts_are_whole(name, option):
    with pytest.raises(UsageError):
        create(name, **{option: 1.5})
