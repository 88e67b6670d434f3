"""Random effects and coefficients of single levels in hypotheses: ``u[g, level, coef]``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import Design
from bayeslmm.data.inputs import nearest
from bayeslmm.data.random_factors import RandomFactor
from bayeslmm.exceptions import DataError
from bayeslmm.prediction.rows import require_memory
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Scope = Literal["standard", "ranef", "coef"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

BEGIN = re.compile(r"(u|coef)\s*\[")
"""How the label of a level's effect begins."""

AT_ONCE = 1 << 24
"""Numbers of the largest array of prior draws."""


@dataclass(frozen=True, slots=True)
class LevelEffect:
    """A random effect of one level, or its sum with the fixed effect.

    Attributes
    ----------
    label : str
        As written out: ``u[Subject, 308, Days]``.
    factor : int
        Position of the grouping factor.
    level : int
        Place of the level.
    own : int
        Place among the coefficients that the level has; -1 where it has no random effect.
    fixed : int
        Place of the fixed effect that counts too; -1 for none.
    """

    label: str
    factor: int
    level: int
    own: int
    fixed: int


def label_end(source: str, start: int) -> int:
    """Place after the bracket that closes a label, or -1."""
    depth = 0
    for place in range(source.index("[", start), len(source)):
        depth += {"[": 1, "]": -1}.get(source[place], 0)
        if depth == 0:
            return place + 1
    return -1


def level_effect(design: Design, text: str) -> LevelEffect:
    """Read a label.

    Raises
    ------
    DataError
        If there is no such grouping factor, level or coefficient; says what there is.
    """
    kind, _, inside = text.partition("[")
    kind, inside = kind.strip(), inside.strip().removesuffix("]").strip()
    names = [factor.name for factor in design.random]
    found = [n for n in names if re.match(rf"{re.escape(n)}\s*,", inside)]
    if not found:
        known = ", ".join(names) or "none"
        raise DataError(
            f"`{text}` names a grouping factor, a level and a coefficient, such as "
            f"`{kind}[{names[0] if names else 'g'}, level, Intercept]`; grouping factors are "
            f"{known}."
        )
    f = names.index(max(found, key=len))
    factor, rest = design.random[f], inside[len(names[f]) :].strip()[1:].strip()
    coef, level = _coefficient(design, factor, kind, rest, text)
    return effect_at(design, f, _level(factor, level, text), coef, kind)


def effect_at(design: Design, f: int, level: int, coef: str, kind: str) -> LevelEffect:
    """The effect of a level that is known."""
    factor, own = design.random[f], design.random[f].own_coefs
    return LevelEffect(
        label=f"{kind}[{factor.name}, {factor.levels[level]}, {coef}]",
        factor=f,
        level=level,
        own=own.index(coef) if coef in own else -1,
        fixed=design.coefs.index(coef) if kind == "coef" and coef in design.coefs else -1,
    )


def coefficients_of(design: Design, factor: RandomFactor, kind: str) -> list[str]:
    """Coefficients that a level has: its random effects, and with "coef" the fixed effects too."""
    fixed = design.coefs if kind == "coef" else ()
    return list(dict.fromkeys([*factor.own_coefs, *fixed]))


def _coefficient(
    design: Design, factor: RandomFactor, kind: str, rest: str, text: str
) -> tuple[str, str]:
    """The coefficient at the end of ``level, coefficient``, and the level."""
    known = coefficients_of(design, factor, kind)
    for coef in sorted(known, key=len, reverse=True):
        pattern = r"\s*".join(map(re.escape, re.findall(r"\w+|[^\w\s]", coef)))
        if match := re.search(rf",\s*{pattern}\s*$", rest):
            return coef, rest[: match.start()].strip()
    named = rest.rpartition(",")[2].strip()
    raise DataError(
        f"`{text}`: levels of {factor.name} have no coefficient `{named}`.{nearest(named, known)} "
        f"They have {', '.join(known)}."
    )


def _level(factor: RandomFactor, level: str, text: str) -> int:
    labels = level_names(factor)
    if level not in labels:
        raise DataError(
            f"`{text}`: {factor.name} has no level `{level}`.{nearest(level, labels)} See "
            "fit.ranef() for its levels."
        )
    return labels.index(level)


def level_names(factor: RandomFactor) -> list[str]:
    """Labels of the levels."""
    return [str(label) for label in factor.levels]


# --- their values at draws -------------------------------------------------------------


def effect_values(
    design: Design, joint: JointDraws, effects: Iterable[LevelEffect]
) -> dict[str, Array]:
    """Values (S,) by label at posterior draws, drawn jointly.

    Raises
    ------
    DataError
        If they would not fit into memory.
    """
    effects = list(effects)
    wanted = _wanted(design, effects)
    require_memory(joint.size * sum(map(len, wanted)), "random effects of these levels")
    drawn = joint.effects(wanted) if effects else []
    return _by_label(design, effects, wanted, drawn, joint.beta)


def prior_values(
    design: Design, points: Points, effects: Iterable[LevelEffect], rng: np.random.Generator
) -> dict[str, Array]:
    """The same at draws of the other parameters from the prior, `points`."""
    effects = list(effects)
    wanted = _wanted(design, effects)
    factors = zip(design.random, wanted, points.sds, points.chols, strict=True)
    drawn = [
        np.concatenate(list(_prior_effects(factor, at, sd, chol, rng)))
        for factor, at, sd, chol in factors
    ]
    return _by_label(design, effects, wanted, drawn, points.beta)


def _prior_effects(
    factor: RandomFactor, levels: Indices, sd: Array, chol: Array, rng: np.random.Generator
) -> Iterator[Array]:
    """Random effects (s, m, k) of some levels at some of the draws, one part after another."""
    related = factor.relationship is not None and len(levels) > 0
    count = factor.n_levels if related else len(levels)
    step = max(1, AT_ONCE // max(1, count * factor.n_coefs))
    for start in range(0, len(sd), step):
        part = slice(start, start + step)
        z = rng.standard_normal((len(sd[part]), count, factor.n_coefs))
        u = np.einsum("sjl,skl,sk->sjk", z, chol[part], sd[part])
        yield factor.effects(u)[:, levels] if related else u


def _wanted(design: Design, effects: Sequence[LevelEffect]) -> list[Indices]:
    """Places of the levels that effects are of, increasing, per grouping factor."""
    return [
        np.unique(np.array([e.level for e in effects if e.factor == f and e.own >= 0], dtype=int))
        for f in range(len(design.random))
    ]


def _by_label(
    design: Design,
    effects: Sequence[LevelEffect],
    wanted: Sequence[Indices],
    drawn: Sequence[Array],
    beta: Array,
) -> dict[str, Array]:
    owned = [
        factor.own(u, at) for factor, u, at in zip(design.random, drawn, wanted, strict=bool(drawn))
    ]
    result = {}
    for effect in effects:
        value = np.zeros(len(beta))
        if effect.fixed >= 0:
            value = value + beta[:, effect.fixed]
        if effect.own >= 0:
            place = np.searchsorted(wanted[effect.factor], effect.level)
            value = value + owned[effect.factor][:, place, effect.own]
        result[effect.label] = value
    return result
