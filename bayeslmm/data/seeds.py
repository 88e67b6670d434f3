"""What `random_seed` may be, wherever it is an argument."""

from __future__ import annotations

from typing import Any

import numpy as np


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
