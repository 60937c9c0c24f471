"""How many rows a layer is fitted on, and how many samples these come from.

Neighbouring places of one sample say nearly the same, so a sample gives only so many rows. Where its map is large a few samples
are enough; the last layers of a network, with one place per sample, need all of them.
"""

from __future__ import annotations

from math import prod

from onnxprune.network import Layer

# Rows per input of a layer: at least the first, and as many as the second where that is not more than PLENTY_ROWS.
FEWEST_PER_INPUT, ROWS_PER_INPUT, PLENTY_ROWS = 8, 256, 16384
# One row for so many places of a sample.
SPACING = 4
# However large the maps are: what samples differ in as a whole (light, contrast) has to be seen too. More than ENOUGH_SAMPLES are
# taken only for the fewest rows: with twice as many, and nearly twice the work, ResNet-20 deviates about 1 % less.
FEWEST_SAMPLES, ENOUGH_SAMPLES = 128, 512
# Every fifth batch is not fitted but judges the ridge; two of those at least.
HELD_EVERY = 5


def rows_wanted(inputs: int) -> int:
    """Rows for a well-posed fit of a layer with so many inputs, and few enough that the sums cost less than the model's run."""
    return max(FEWEST_PER_INPUT * inputs, min(ROWS_PER_INPUT * inputs, PLENTY_ROWS))


def samples_wanted(layer: Layer, rows: int, inputs: int) -> int:
    """Samples that give so many rows, or only the fewest for so many inputs where the rows would take too many samples."""
    places = prod(layer.output_shape[2:]) if layer.op.startswith("Conv") else 1
    each = max(places // SPACING, 1)
    return max(min(-(-rows // each), ENOUGH_SAMPLES), -(-FEWEST_PER_INPUT * inputs // each), FEWEST_SAMPLES)


def batches_wanted(samples: int, count: int, batch: int) -> int:
    """Batches that hold so many of `count` samples, but enough of them to keep some from the fit.

    `count`, which is more than there are, where all samples are wanted: those of different shapes come in shorter batches.
    """
    return count if samples >= count else max(-(-samples // batch), 2 * HELD_EVERY)
