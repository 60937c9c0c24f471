"""Options that cannot be met: out of range, contradictory, misspelt."""

import pytest
from workplace import QUICK

from onnxprune import devices


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--ratio -0.1", "not at least 0"),
        ("--ratio 1", "less than 1"),
        ("--ratio 2", "less than 1"),
        ("--ratio nan", "nan"),
        ("--ratio abc", "'abc' is not a number"),
        ("--ratio 40%", "write 0.4"),
        ("--ratio", "requires an argument"),
        ("", "say how much should go"),
        ("--ratio 0.4 --target macs=0.5", "not by --ratio and --target together"),
        ("--target macs=0", "more than 0"),
        ("--target macs=2", "at most 1"),
        ("--target macs=nan", "nan"),
        ("--target speed=0.5", "macs=0.6"),
        ("--target macs", "macs=0.6"),
        ("--target macs=0.001", "cannot be reached"),
        ("--target params=0.001", "cannot be reached"),
        ("--target bytes=0.001", "cannot be reached"),
        ("--ratio 0.4 --method coreset-chanel", "did you mean 'coreset-channel'?"),
        ("--ratio 0.4 --method xyzzy", "there are: "),
        ("--ratio 0.4 --budget uniformly", "did you mean 'uniform'?"),
        ("--ratio 0.4 --repair lstsq", "least-squares"),
        ("--ratio 0.4 --option betta=1", "did you mean 'beta'?"),
        ("--ratio 0.4 --option beta=high", "give a number"),
        ("--ratio 0.4 --option beta=-1", "beta"),
        ("--ratio 0.4 --beta nan", "beta"),
        ("--ratio 0.4 --only fc9*", "no group or layer 'fc9*'"),
        ("--ratio 0.4 --skip nothing", "no group or layer 'nothing'"),
        ("--ratio 0.4 --kind heads", "no kind of channel 'heads'; did you mean 'head'"),
        ("--ratio 0.4 --kind colour", "there are: channel, embedding, expert"),
        ("--ratio 0.4 --align 0", "positive number"),
        ("--ratio 0.4 --device cuda:99", "use "),
        ("--ratio 0.4 --device tpu", "cuda:N"),
        ("--ratio 0.4 --input-shape z:1,8", "no input 'z'"),
        ("--ratio 0.4 --input-shape x:1,9", "does not fit input 'x'"),
        ("--ratio 0.4 --input-shape x:0,8", "not a shape"),
        ("--ratio 0.4 --fail-if top1<0.9", "did you mean 'top1_agreement'?"),
        ("--ratio 0.4 --fail-if cosine=0.9", "cannot read the gate"),
        ("--ratio 0.4 --fail-if cosine<ninety", "cannot read the gate"),
        ("--ratio 0.4 --fail-if logits.cosine<0.9", "no output 'logits'"),
        ("--ratio 0.4 --fail-if accuracy_drop>0.01", "needs labels"),
        ("--ratio 0.4 --no-latency --fail-if speedup<1", "needs latency"),
        ("--ratio 0.4 --samples 0", "x>=1"),
        ("--ratio 0.4 --batch -3", "x>=1"),
        ("--ratio 0.4 --held-out 1", "less than 1"),
        ("--ratio 0.4 --held-out 0", "between 0 and 1"),
        ("--ratio 0.4 --seed -1", "seed=-1; give a whole number, 0 to 9223372036854775807"),
        ("--ratio 0.4 --seed 9223372036854775808", "seed=9223372036854775808"),
        ("--ratio 0.4 --seed 1.5", "'1.5' is not a valid integer"),
        ("--ratio 0.4 --rattio 0.5", "did you mean '--ratio'?"),
        ("--ratio 0.4 one.onnx two.onnx", "unexpected extra argument"),
        ("--ratio 0.4 one.onnx -o two.onnx", "two outputs"),
    ],
)
def test_refused(refused, args, says):
    refused("net.onnx", *args.split(), says=[says])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--skip *", "leave no group"),
        ("--only fc3 --skip fc*", "leave no group"),
        ("--align 1000", "smaller --align"),
        ("--method magnitude --skip *", "--only and --skip leave no layer"),
        ("--method svd --skip *", "--only and --skip leave no layer"),
    ],
)
def test_nothing_is_left_to_prune(prune, args, says):
    prune(*args.split(), code=3, says=[says])


@pytest.mark.parametrize(("args", "what"), [("--method l1-channel --align 1", "channel"), ("--method magnitude", "weight")])
def test_so_little_is_asked_for_that_nothing_goes(refused, args, what):
    says = [f"not one {what} is to go at this ratio; ask for more"]
    refused("net.onnx", "--ratio", "1e-9", *QUICK, *args.split(), code=3, says=says)


@pytest.mark.skipif(devices.gpu_count() > 0, reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_without_a_gpu(prune, device):
    prune("--device", device, says=["no NVIDIA GPU was found here", "'cpu'"])


@pytest.mark.parametrize(
    "args", ["inspekt net.onnx", "prun net.onnx", "compare net.onnx", "inspect", "methods x", "doctor --nope"]
)
def test_wrong_commands(refused, args):
    refused(*args.split(), says=["(see onnxprune"])


def test_a_failed_gate_is_1_and_the_model_is_there(place, run):
    result = run("net.onnx", "--ratio", "0.4", "--no-latency", "--samples", "32", "-q", "--fail-if", "top1_agreement<2")
    assert result.exit_code == 1
    assert result.stderr.startswith("onnxprune: gate failed: top1_agreement<2: it is ")
    assert result.stderr.count("\n") == 1
    assert (place / "net.pruned.onnx").exists()
