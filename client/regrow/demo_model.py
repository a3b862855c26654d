"""The demo's arithmetic: a softmax classifier of handwritten digits, trained in mini-batches.

It decides how the rows are split, what a gradient is and how a step is taken; it knows nothing of
tasks, actors or nodes. Every function is deterministic: the same arguments give the same bits,
provided that the BLAS runs single-threaded (`regrow.demo` sets that for its workers), and sums are
taken in the order in which the gradients are given.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PIXELS = 64
CLASSES = 10
#: Rows held out for the final accuracy; never seen in training.
TEST_ROWS = 360
SPLIT_SEED = 1797

LEARNING_RATE = 1.0
MOMENTUM = 0.9

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """Images and what they show."""

    #: (n, PIXELS + 1) pixels in [0, 1], the last column 1 for the bias.
    features: Floats
    #: (n,) digits 0-9.
    labels: Ints


def training_and_test_rows() -> tuple[Rows, Rows]:
    """Return scikit-learn's 1,797 digits, split once and for all into training and test rows.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(digits.target))
    pixels = digits.data[order] / 16.0
    features = np.hstack([pixels, np.ones((len(pixels), 1))])
    labels = digits.target[order].astype(np.int64)
    return (
        Rows(features[:-TEST_ROWS], labels[:-TEST_ROWS]),
        Rows(features[-TEST_ROWS:], labels[-TEST_ROWS:]),
    )


def shard(rows: Rows, epoch: int, index: int, shards: int) -> Rows:
    """Return shard ``index`` of ``shards``: every row is in exactly one, dealt anew each epoch."""
    order = np.random.default_rng((SPLIT_SEED, epoch)).permutation(len(rows.labels))
    chosen = order[index::shards]
    return Rows(rows.features[chosen], rows.labels[chosen])


def batch(rows: Rows, step: int, steps: int) -> Rows:
    """Return the part of a shard that step ``step`` of an epoch's ``steps`` learns from."""
    size = len(rows.labels) // steps
    part = slice(step * size, (step + 1) * size)
    return Rows(rows.features[part], rows.labels[part])


def initial_weights() -> Floats:
    """Return the (PIXELS + 1, CLASSES) weights that training starts from."""
    return np.zeros((PIXELS + 1, CLASSES))


def loss(weights: Floats, rows: Rows) -> float:
    """Return the mean cross-entropy of the rows, in nats."""
    chosen = _probabilities(weights, rows)[np.arange(len(rows.labels)), rows.labels]
    return float(-np.log(chosen).mean())


def gradient(weights: Floats, rows: Rows) -> Floats:
    """Return the gradient of the mean cross-entropy, in the shape of the weights."""
    error = _probabilities(weights, rows)
    error[np.arange(len(rows.labels)), rows.labels] -= 1.0
    return rows.features.T @ error / len(rows.labels)


def momentum_step(
    weights: Floats, velocity: Floats, gradients: Sequence[Floats]
) -> tuple[Floats, Floats]:
    """Return the weights and velocity after one step along the gradients' mean.

    The gradients are summed in the order given, so equal inputs give equal bits.
    """
    total = np.zeros_like(weights)
    for one in gradients:
        total = total + one
    velocity = MOMENTUM * velocity - LEARNING_RATE * (total / len(gradients))
    return weights + velocity, velocity


def accuracy(weights: Floats, rows: Rows) -> float:
    """Return the share of rows whose most probable digit is the right one."""
    predicted = np.argmax(rows.features @ weights, axis=1)
    return float((predicted == rows.labels).mean())


def _probabilities(weights: Floats, rows: Rows) -> Floats:
    """Return the (n, CLASSES) softmax; the largest score is subtracted first, against overflow."""
    scores = rows.features @ weights
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
