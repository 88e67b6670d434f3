"""Draws of predictions, and their averages held against figures without Monte Carlo error."""

from __future__ import annotations

import numpy as np
import pytest

# The same numbers by another order of floating-point operations, relative to their size.
EXACT = 1e-9
# Monte Carlo standard errors that an average of draws may be off: a right program exceeds this
# with a probability of 7e-6 per figure, and the seeds are fixed.
DEVIATIONS = 4.5


def draws_of(post, new, **options):
    """Draws (S, n) of predictions."""
    tree = post.predict(new, summary=False, **options)
    (values,) = tree["predictions"].data_vars.values()
    return values.to_numpy().reshape(-1, values.shape[-1])


def stored(post, key):
    """Stored draws (S, J, k) of random effects."""
    values = post.data["posterior"][f"u_{key}"].to_numpy()
    return values.reshape(-1, *values.shape[2:]).swapaxes(-2, -1)


def assert_mean(draws, expected):
    """Averages over independent draws (S, ...) are `expected`, up to Monte Carlo error."""
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    gap = np.abs(draws.mean(axis=0) - expected)
    assert np.all(gap <= DEVIATIONS * error + EXACT), (gap / error).max()


def assert_second_moments(draws, expected):
    """E[x x'] of draws (S, m) is `expected` (m, m), or the average of (S, m, m)."""
    products = draws[:, :, None] * draws[:, None, :]
    assert_mean(products - expected, 0.0)


def assert_sds(draws, expected):
    """Standard deviations (m,) of nearly normal draws; theirs has relative error 1/sqrt(2S)."""
    error = DEVIATIONS / np.sqrt(2 * len(draws))
    assert draws.std(axis=0, ddof=1) == pytest.approx(expected, rel=error)
