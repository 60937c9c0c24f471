"""Outputs that cannot be written, or only in part; interrupts and kills: what was there before is there after."""

import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import onnx
import pytest
from workplace import QUICK, contents, mounted, one_line, process

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, signals and mounts as POSIX has them")
USUAL = ("net.onnx", "--ratio", "0.4", *QUICK)

# Runs in the process under test: {act} happens once the temporary file is written, before it is put in place.
IN_THE_MIDDLE = """
import os, signal, time
import onnxprune.rewrite.save as save
durable = save._durable
def interrupted(stream):
    durable(stream)
    {act}
save._durable = interrupted
"""


@pytest.mark.parametrize("link", ["same", "spelt otherwise", "symbolic", "hard"])
def test_the_output_is_the_input(refused, place, link):
    name = {"same": "net.onnx", "spelt otherwise": f"../{place.name}/net.onnx"}.get(link, "link.onnx")
    if link == "symbolic":
        (place / name).symlink_to("net.onnx")
    elif link == "hard":
        (place / name).hardlink_to("net.onnx")
    refused(*USUAL, "-o", name, says=["never overwritten"])
    refused(*USUAL, name, says=["never overwritten"])


@pytest.mark.parametrize("option", ["--json", "--summary"])
@pytest.mark.parametrize("target", ["net.onnx", "data.npz", "link"])
def test_a_report_over_an_input(refused, place, option, target):
    (place / "link").symlink_to("net.onnx")
    refused(*USUAL, "--data", "data.npz", option, target, says=["never overwritten"])


@pytest.mark.parametrize("command", ["inspect net.onnx", "compare net.onnx net.onnx --data data.npz"])
def test_json_over_the_model(refused, command):
    refused(*command.split(), "--json", "net.onnx", says=["never overwritten"])


@pytest.mark.parametrize("option", ["-o", "--json", "--summary"])
def test_places_that_are_none(refused, place, option):
    (place / "folder").mkdir()
    refused(*USUAL, option, "folder", says=["folder is a folder"])
    refused(*USUAL, option, "no/such/file", says=["no/such"])
    refused(*USUAL, option, "net.onnx/file", says=["net.onnx is a file, not a folder"])
    refused(*USUAL, option, "x" * 300, says=["File name too long"])


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")  # noqa: PTH112
@pytest.mark.parametrize("option", ["-o", "--json", "--summary"])
def test_folder_that_takes_no_files(refused, option):
    refused(*USUAL, option, "/proc/result", says=["/proc/result"])


def test_devices_are_no_models(refused, place):
    refused(*USUAL, "-o", "/dev/null", says=["/dev/null is no regular file"])
    assert Path("/dev/null").is_char_device()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere: see the read-only mount instead")
def test_folder_without_permission(refused, place):
    folder = place / "locked"
    folder.mkdir(mode=0o500)
    refused(*USUAL, "-o", "locked/out.onnx", says=["locked"])


@pytest.fixture
def disk(place):
    """A file system of 64 kB, or a skip."""
    folder = place / "disk"
    folder.mkdir()
    mounted(folder, "-t", "tmpfs", "-o", "size=64k", "tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_read_only_file_system(refused, place, disk):
    mounted(disk, "-o", "remount,ro")
    refused(*USUAL, "-o", "disk/out.onnx", says=["disk/out.onnx"])


def large(place):
    """The same job with a model of about 300 kB."""
    model = onnx.load(place / "net.onnx")
    model.doc_string = "x" * 300_000
    onnx.save(model, place / "net.onnx")


def test_full_disk(refused, place, disk):
    large(place)
    (disk / "out.onnx").write_bytes(b"an older result")
    refused(*USUAL, "-o", "disk/out.onnx", says=["disk/out.onnx", "the disk is full", "nothing was left behind"])


def test_full_disk_for_the_figures(place, run, disk):
    (disk / "filler").write_bytes(bytes(64 * 1024))
    before = contents(disk)
    result = run(*USUAL, "-q", "--json", "disk/report.json")
    assert result.exit_code == 2
    one_line(result.stderr, "disk/report.json")
    assert contents(disk) == before


def ended(running, code):
    out, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    return out, err


def test_limit_on_file_size(place):
    large(place)
    before = contents(place)

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    _, err = ended(process(*USUAL, "--repair", "none", "-q", preexec_fn=limited), 2)
    one_line(err, "net.pruned.onnx", "make room")
    assert contents(place) == before


def test_no_space_on_stdout(place):
    full = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
    for command in ("inspect net.onnx", "inspect net.onnx --json -"):
        _, err = ended(process(*command.split(), before=full), 2)
        one_line(err, "cannot write to stdout: No space left on device")


@pytest.mark.parametrize("closed", [(1,), (1, 2), (0, 1, 2)], ids=str)
def test_closed_streams(place, closed):
    """What was closed shows nothing, and that is no reason not to do the work."""

    def close():
        for number in closed:
            os.close(number)

    for command in ("inspect net.onnx", " ".join((*USUAL, "--data", "data.npz"))):
        assert ended(process(*command.split(), preexec_fn=close), 0)[1] == ""
    onnx.checker.check_model("net.pruned.onnx", full_check=True)


@pytest.mark.parametrize("style", ["inside", "external"])
def test_killed_in_the_middle_of_saving(place, style):
    """The old result is whole, and the next run tidies nothing away that is needed."""
    if style == "external":
        onnx.save(onnx.load("net.onnx"), "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    assert ended(process(*USUAL, "-q"), 0) == ("", "")
    before = contents(place)
    ended(process(*USUAL, "-q", "--seed", "5", before=IN_THE_MIDDLE.format(act="os.kill(os.getpid(), signal.SIGKILL)")), -9)
    after = contents(place)
    assert {name: after[name] for name in before} == before
    left = [name for name in after if name not in before]
    assert all(name.endswith(".tmp") for name in left), left
    onnx.checker.check_model("net.pruned.onnx", full_check=True)


@pytest.mark.parametrize(("act", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_interrupted_in_the_middle_of_saving(place, act, code):
    (place / "net.pruned.onnx").write_bytes(b"an older result")
    before = contents(place)
    middle = IN_THE_MIDDLE.format(act=f"os.kill(os.getpid(), signal.{act}); time.sleep(5)")
    out, err = ended(process(*USUAL, "-q", before=middle), code)
    assert (out, err) == ("", "interrupted, nothing was written\n" if act == "SIGINT" else "")
    assert contents(place) == before


# Runs in the process under test: a signal arrives in {name} of the pipeline, and a library swallows what is raised of it.
SWALLOWED = """
import os, signal, time
import onnxprune.pipeline as pipeline
inner = pipeline.{name}
def swallowing(*given, **more):
    try:
        os.kill(os.getpid(), signal.{act})
        time.sleep(5)
    except BaseException:
        pass
    return inner(*given, **more)
pipeline.{name} = swallowing
"""


@pytest.mark.parametrize(("act", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_an_interrupt_that_a_library_swallows(place, act, code):
    before = contents(place)
    _, err = ended(process(*USUAL, "-q", before=SWALLOWED.format(act=act, name="find")), code)
    assert err == ("interrupted, nothing was written\n" if act == "SIGINT" else "")
    assert contents(place) == before


@pytest.mark.parametrize(("act", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupt_that_is_swallowed_last_is_told_by_the_exit_code(place, act, code):
    assert ended(process(*USUAL, "-q", before=SWALLOWED.format(act=act, name="evaluate")), code) == ("", "")
    onnx.checker.check_model("net.pruned.onnx", full_check=True)


def test_an_interrupt_while_the_commands_are_imported(place):
    early = """
import os, signal, sys
class Pressed:
    def __getattr__(self, name):
        os.kill(os.getpid(), signal.SIGINT)
sys.modules["click"] = Pressed()
"""
    _, err = ended(process(*USUAL, before=early), 130)
    assert err == "interrupted, nothing was written\n"


def test_an_ignored_signal_stays_ignored(place):
    """As nohup has it."""
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    assert ended(process(*USUAL, "-q", before=ignored + SWALLOWED.format(act="SIGHUP", name="find").replace("(5)", "(0)")), 0)


def test_interrupted_after_saving(place):
    late = "import os, signal, onnxprune.pipeline as p\np.evaluate = lambda *a: os.kill(os.getpid(), signal.SIGINT)"
    _, err = ended(process(*USUAL, "-q", before=late), 130)
    assert err == "interrupted; the model is in net.pruned.onnx\n"
    onnx.checker.check_model("net.pruned.onnx", full_check=True)


def test_a_proof_that_fails_leaves_nothing(place, run, monkeypatch):
    """Our own bug: exit code 4, and the wrong model never reaches the disk."""
    monkeypatch.setattr("onnxprune.rewrite.prove._difference", lambda *values, **options: 0.5)
    before = contents(place)
    result = run(*USUAL)
    assert result.exit_code == 4
    assert "differs from its masked twin" in result.stderr
    assert contents(place) == before


def test_only_json_on_stdout_when_the_script_prints(place, run):
    (place / "data.py").write_text("import numpy\ndef load():\n  print('hello')\n  return numpy.ones((40, 8), 'float32')\n")
    result = run("net.onnx", "--ratio", "0.4", "--no-latency", "--data", "data.py:load", "--json", "-")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["schema"] == 1
    assert "hello" in result.stderr
