"""The demo's arithmetic, without tasks or nodes."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

from regrow import demo_model as model

SHARDS = 6
EPOCHS = 8
STEPS = 6


def small_rows(count: int) -> model.Rows:
    random = np.random.default_rng(1)
    features = random.random((count, model.PIXELS + 1))
    return model.Rows(features, random.integers(0, model.CLASSES, count))


def train() -> model.Floats:
    rows, _ = model.training_and_test_rows()
    weights = model.initial_weights()
    velocity = np.zeros_like(weights)
    for epoch in range(EPOCHS):
        shards = [model.shard(rows, epoch, index, SHARDS) for index in range(SHARDS)]
        for step in range(STEPS):
            gradients = [model.gradient(weights, model.batch(part, step, STEPS)) for part in shards]
            weights, velocity = model.momentum_step(weights, velocity, gradients)
    return weights


def test_split_holds_out_rows_that_training_never_sees() -> None:
    training, test = model.training_and_test_rows()
    assert len(training.labels) + len(test.labels) == 1797
    seen = {row.tobytes() for row in training.features}
    assert not any(row.tobytes() in seen for row in test.features)


def test_shards_of_an_epoch_hold_each_row_once() -> None:
    rows = model.Rows(np.arange(100.0).reshape(100, 1), np.arange(100))
    for epoch in range(3):
        dealt = np.concatenate([model.shard(rows, epoch, i, 7).labels for i in range(7)])
        assert sorted(dealt) == list(range(100))


def test_shards_are_dealt_anew_each_epoch() -> None:
    rows = small_rows(100)
    first, second = (model.shard(rows, epoch, 0, 4) for epoch in (0, 1))
    assert not np.array_equal(first.features, second.features)


def test_shards_are_too_large_for_the_log() -> None:
    rows, _ = model.training_and_test_rows()
    for index in range(SHARDS):
        assert model.shard(rows, 0, index, SHARDS).features.nbytes > 8 * 1024


def test_batches_of_a_shard_do_not_overlap() -> None:
    rows = model.Rows(np.arange(61.0).reshape(61, 1), np.arange(61))
    learnt = np.concatenate([model.batch(rows, step, 6).labels for step in range(6)])
    assert len(set(learnt)) == len(learnt) == 60


def test_gradient_is_the_slope_of_the_loss() -> None:
    rows = small_rows(20)
    weights = np.random.default_rng(2).normal(size=(model.PIXELS + 1, model.CLASSES))
    slope = model.gradient(weights, rows)
    step = 1e-6
    for where in [(0, 0), (17, 3), (model.PIXELS, 9)]:
        above, below = weights.copy(), weights.copy()
        above[where] += step
        below[where] -= step
        measured = (model.loss(above, rows) - model.loss(below, rows)) / (2 * step)
        assert slope[where] == pytest.approx(measured, abs=1e-7)


def test_step_sums_in_the_order_given() -> None:
    weights = np.zeros((1, 1))
    parts = [np.full((1, 1), value) for value in (1e16, 1.0, -1e16)]
    forward, _ = model.momentum_step(weights, weights, parts)
    regrouped, _ = model.momentum_step(weights, weights, [parts[0], parts[2], parts[1]])
    assert forward.tobytes() != regrouped.tobytes()


def test_training_twice_gives_the_same_bits_and_learns_the_digits() -> None:
    weights = train()
    assert weights.tobytes() == train().tobytes()
    _, test = model.training_and_test_rows()
    assert model.accuracy(model.initial_weights(), test) < 0.2
    assert model.accuracy(weights, test) >= 0.93
