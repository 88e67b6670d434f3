"""Draws of the linear predictor and of the response at rows to predict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.draws import normal_draws
from bayeslmm.prediction.rows import Membership, Rows
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]

LARGEST = 2**31
"""Bytes of draws that are held at once."""


def effects_of_rows(
    rows: Rows, joint: JointDraws, rng: np.random.Generator
) -> list[tuple[Array, Array]]:
    """Random effects that the rows need, per grouping factor.

    Returns
    -------
    list of (known, fresh)
        Draws (S, J', k) of the levels that occur, in the order of their places, and (S, m, k) of
        the new levels, independent of each other given the covariance parameters.
    """
    wanted = [member.wanted for member in rows.members]
    if not wanted:
        return []
    per_level = [member.Z.shape[1] for member in rows.members]
    counts = [len(w) + m.n_fresh for w, m in zip(wanted, rows.members, strict=True)]
    entries = sum(k * count for k, count in zip(per_level, counts, strict=True))
    require_memory(joint.size * entries, "random effects")
    known = joint.effects(wanted)
    return [
        (u, new_effects(root, member.n_fresh, rng))
        for u, root, member in zip(known, joint.roots, rows.members, strict=True)
    ]


def new_effects(root: Array, levels: int, rng: np.random.Generator) -> Array:
    """Random effects (S, levels, k) of levels without data, given roots (S, k, k) of Sigma."""
    size, k = root.shape[:2]
    noise = normal_draws(rng, levels * k, size).reshape(size, levels, k)
    return np.asarray(noise @ root.transpose(0, 2, 1))


def linear_draws(
    rows: Rows, joint: JointDraws, effects: Sequence[tuple[Array, Array]], part: slice
) -> Array:
    """Draws (S, n) of offset + X beta + Z u at some of the rows."""
    design = rows.design
    result = np.asarray(joint.beta @ design.X[part].T + design.offset[part])
    for member, (known, fresh) in zip(rows.members, effects, strict=bool(effects)):
        add_effects(result, member, known, fresh, part)
    return result


def add_effects(result: Array, member: Membership, known: Array, fresh: Array, part: slice) -> None:
    """Add the effects of one grouping factor to draws (S, n) of its rows."""
    for codes, u in (
        (np.searchsorted(member.wanted, member.known[part]), known),
        (member.fresh[part], fresh),
    ):
        here = member.known[part] >= 0 if u is known else member.fresh[part] >= 0
        if here.any():
            at = np.flatnonzero(here)
            for c in range(u.shape[2]):
                result[:, at] += u[:, codes[at], c] * member.Z[part][at, c]


def response_noise(rows: Rows, joint: JointDraws, part: slice, rng: np.random.Generator) -> Array:
    """Draws (S, n) of the residuals at some of the rows."""
    weights = rows.design.weights
    n = len(rows.design.y[part])
    noise = rng.standard_normal((joint.size, n)) * joint.sigma[:, None]
    return noise if weights is None else noise / np.sqrt(weights[part])


def require_memory(entries: int, what: str) -> None:
    """Raise where draws would not fit into memory."""
    if 8 * entries > LARGEST:
        raise DataError(
            f"Draws of the {what} would take {8 * entries / 2**30:.1f} GB, more than the limit of "
            f"{LARGEST / 2**30:g} GB. Ask for fewer draws (draws=) or predict fewer rows at a time."
        )
