"""Recurrent layers."""

from __future__ import annotations

from tests.graph.cases import CASES, ints
from tests.graph.cases import dense as build
from tests.graph.nets import node, values

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
UNITS, INPUTS = 6, 5


def weights(op: str, directions: int = 1, inputs: int = INPUTS, suffix: str = "") -> dict:
    gates = GATES[op]
    return {
        f"w{suffix}": values(directions, gates * UNITS, inputs, seed=1),
        f"r{suffix}": values(directions, gates * UNITS, UNITS, seed=2),
        f"b{suffix}": values(directions, 2 * gates * UNITS, seed=3),
    }


def recurrent(name: str, nodes, stored, groups, pins=(), shape=(4, "N", INPUTS), **fields) -> None:
    CASES[name] = build(nodes, stored, groups, pins, shape=shape, **fields)


OUT = {"out": values(UNITS, 3), "one": ints(1), "zero": ints(0)}
READ = [node("Squeeze", "h one", "s"), node("MatMul", "s out", "y", name="last")]

for op in GATES:
    plain = node(op, "x w r b", "h", name="cell", hidden_size=UNITS)
    recurrent(f"{op}_forward", [plain, *READ], weights(op) | OUT, {"cell": UNITS})
    reverse = node(op, "x w r", "h", name="cell", hidden_size=UNITS, direction="reverse", clip=0.3)
    recurrent(f"{op}_reverse_without_bias", [reverse, *READ], weights(op) | OUT, {"cell": UNITS})
    final = [node(op, "x w r b", "- h", name="cell", hidden_size=UNITS), node("Squeeze", "h zero", "s"), READ[1]]
    recurrent(f"{op}_final_state", final, weights(op) | OUT, {"cell": UNITS})
    both = [
        node(op, "x w r b", "h", name="cell", hidden_size=UNITS, direction="bidirectional"),
        node("Transpose", "h", "t", perm=[0, 2, 1, 3]),
        node("Reshape", "t to", "s"),
        node("MatMul", "s out", "y", name="last"),
    ]
    sides = {"to": ints(0, 0, -1), "out": values(2 * UNITS, 3)}
    recurrent(f"{op}_bidirectional", both, weights(op, 2) | sides, {"cell": UNITS})
    recurrent(f"{op}_bidirectional_sizes_stated", both, weights(op, 2) | sides | {"to": ints(4, -1, 12)}, {"cell": UNITS})
    stacked = [
        plain,
        node("Squeeze", "h one", "s"),
        node("Relu", "s", "u"),
        node(op, "u w2 r2 b2", "h2", name="cell2", hidden_size=UNITS),
        node("Squeeze", "h2 one", "s2"),
        node("MatMul", "s2 out", "y", name="last"),
    ]
    two = weights(op) | weights(op, inputs=UNITS, suffix="2") | OUT
    recurrent(f"{op}_stacked", stacked, two, {"cell": UNITS, "cell2": UNITS})
    behind = [node("MatMul", "x w0", "u", name="first"), node(op, "u w r b", "h", name="cell", hidden_size=UNITS), *READ]
    recurrent(f"{op}_reads_channels", behind, weights(op) | OUT | {"w0": values(5, 5)}, {"first": 5, "cell": UNITS})
    stated = [node(op, "x w r b - h0", "h", name="cell", hidden_size=UNITS), *READ]
    recurrent(f"{op}_stored_start", stated, weights(op) | OUT | {"h0": values(1, 2, UNITS)}, {"cell": UNITS}, shape=(4, 2, 5))

recurrent(
    "GRU_linear_before_reset",
    [node("GRU", "x w r b", "h", name="cell", hidden_size=UNITS, linear_before_reset=1), *READ],
    weights("GRU") | OUT,
    {"cell": UNITS},
)
recurrent(
    "RNN_of_relu",
    [node("RNN", "x w r b", "h", name="cell", hidden_size=UNITS, activations=["Relu"]), *READ],
    weights("RNN") | OUT,
    {"cell": UNITS},
)
recurrent(
    "LSTM_peepholes_lengths_and_states",
    [node("LSTM", "x w r b len h0 c0 p", "h", name="cell", hidden_size=UNITS, input_forget=0), *READ],
    weights("LSTM")
    | OUT
    | {"len": ints(4, 2).astype("int32"), "h0": values(1, 2, UNITS), "c0": values(1, 2, UNITS), "p": values(1, 3 * UNITS)},
    {"cell": UNITS},
    shape=(4, 2, INPUTS),
)
recurrent(
    "LSTM_cell_state_read_and_handed_on",
    [
        node("LSTM", "x w r b", "h hn cn", name="cell", hidden_size=UNITS),
        node("LSTM", "x w2 r2 b2 - hn cn", "h2", name="cell2", hidden_size=UNITS),
        node("Squeeze", "h2 one", "s2"),
        node("MatMul", "s2 out", "y", name="last"),
    ],
    weights("LSTM") | weights("LSTM", suffix="2") | OUT,
    {"cell": UNITS},
)
recurrent(
    "LSTM_starts_from_an_input",
    [
        node("Unsqueeze", "x zero", "h0"),
        node("LSTM", "k w r b - h0", "h", name="cell", hidden_size=UNITS),
        node("Squeeze", "h one", "s"),
        node("MatMul", "s out", "y", name="last"),
    ],
    weights("LSTM") | OUT | {"k": values(4, 2, INPUTS)},
    {},
    (("h0", "'cell' starts from it"),),
    shape=(2, UNITS),
)
recurrent(
    "LSTM_weights_made_at_run_time",
    [
        node("MatMul", "x w0", "u", name="first"),
        node("ReduceMean", "x", "m", keepdims=1),
        node("Mul", "w m", "wm"),
        node("LSTM", "u wm r b", "h", name="cell", hidden_size=UNITS),
        *READ,
    ],
    weights("LSTM") | OUT | {"w0": values(5, 5)},
    {},
    (("u", "computed at run time"),),
)
recurrent(
    "LSTM_steps_along_channels",
    [
        node("MatMul", "x w0", "u", name="first"),
        node("Transpose", "u", "t", perm=[2, 1, 0]),
        node("LSTM", "t w r b", "h", name="cell", hidden_size=UNITS),
        *READ,
    ],
    weights("LSTM") | OUT | {"w0": values(5, 5)},
    {"cell": UNITS},
    (("t", "steps along"),),
    shape=(5, "N", INPUTS),
)
recurrent(
    "LSTM_as_output",
    [node("LSTM", "x w r b", "y", name="cell", hidden_size=UNITS)],
    weights("LSTM"),
    {},
)
