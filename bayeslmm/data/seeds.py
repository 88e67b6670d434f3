"""What `random_seed` may be, wherever it is an argument."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

RECORDED = "random_seeds"
"""Attribute of a posterior with the seeds of its runs, as JSON."""


def seeded(random_seed: Any) -> np.random.Generator:
    """The generator of random numbers that a seed stands for.

    Parameters
    ----------
    random_seed : int, sequence of int, numpy.random.Generator or None
        A generator is taken as it is; None is another stream each time.

    Raises
    ------
    ValueError
        If it is something else.
    """
    try:
        return np.random.default_rng(random_seed)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"random_seed={random_seed!r}: a whole number of at least 0 is expected, a "
            "numpy.random.Generator, or None for another stream each time."
        ) from error


def known_seed(random_seed: Any) -> Any:
    """A seed that can be written down: what is given, or in place of None a new one.

    Parameters
    ----------
    random_seed : int, sequence of int, numpy.random.Generator or None
        What :func:`seeded` takes. None becomes the entropy of the operating system, an integer.

    Raises
    ------
    ValueError
        If it is something else.
    """
    seeded(random_seed)  # which says what a seed may be
    return np.random.SeedSequence().entropy if random_seed is None else random_seed


def recorded_seeds(random_seed: Any, earlier: Mapping[Any, Any] | None = None) -> str:
    """The value of :data:`RECORDED` after a run with a seed.

    Parameters
    ----------
    random_seed : int, sequence of int or numpy.random.Generator
        Its seed. A generator, whose state is not kept, counts as null.
    earlier : mapping, optional
        Attributes of the posterior that the run extends.
    """
    before = () if earlier is None else seeds_of(earlier)
    return json.dumps([*before, _plain(random_seed)])


def _plain(random_seed: Any) -> Any:
    """The seed in JSON: a whole number or a list of them, else None."""
    if isinstance(random_seed, Integral):
        return int(random_seed)
    if isinstance(random_seed, (Sequence, np.ndarray)):
        return [int(part) for part in random_seed]
    return None


def seeds_of(attrs: Mapping[Any, Any]) -> tuple[int | tuple[int, ...] | None, ...]:
    """The seeds of the runs of a posterior, by its attributes; ValueError if they are no such."""
    found = json.loads(attrs.get(RECORDED, "[null]"))
    for seed in found:
        parts = seed if isinstance(seed, list) else [] if seed is None else [seed]
        if not all(type(part) is int for part in parts):
            raise ValueError(f"{seed!r} is no seed")
    return tuple(tuple(seed) if isinstance(seed, list) else seed for seed in found)
