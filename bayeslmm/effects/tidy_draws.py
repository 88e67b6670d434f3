"""Posterior draws as tidy frames: a column per quantity, a row per quantity, or by level."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.frames import to_frame
from bayeslmm.effects.expressions import LinearForm, Node, Symbols, parse_expression, symbols_of
from bayeslmm.effects.random_labels import (
    LevelEffect,
    coefficients_of,
    effect_at,
    effect_values,
    level_names,
)
from bayeslmm.exceptions import DataError, check_choice, require
from bayeslmm.prediction.predict import PREDICTION_DIM, Kind
from bayeslmm.prediction.rows import require_memory
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import joint_parameter, parameters

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]
Format = Literal["wide", "long", "levels"]
Engine = Literal["pandas", "polars"]

SAMPLE = (".chain", ".iteration", ".draw")
"""Columns of every frame: chain, draw within it, and number among all draws, from 0."""

OF_KIND = {"epred": ".epred", "linpred": ".linpred", "response": ".prediction"}
"""Columns of predictions, as tidybayes calls them."""

_WHOLE = re.compile(r"\s*(u|coef)\s*(?:\[\s*(.*?)\s*\])?\s*")


@dataclass(frozen=True, slots=True, eq=False)
class Quantity:
    """Something drawn: an expression, with the column that it goes to."""

    name: str
    node: Node


def tidy_draws(
    design: Design,
    joint: JointDraws,
    names: str | Sequence[str] | Mapping[str, str] | None,
    form: Format,
    engine: Engine,
    *,
    regex: bool,
) -> Any:
    """Posterior draws of parameters and of functions of them: see ``posterior.draws()``."""
    check_choice(form, get_args(Format), "format")
    check_engine(engine)
    symbols = symbols_of(design)
    if form == "levels":
        return _framed(_by_level(design, symbols, joint, names, regex=regex), engine)
    quantities = _quantities(design, symbols, names, regex=regex)
    columns = _columns(design, symbols, joint, quantities)
    if form == "wide":
        return _framed(_sample(joint) | columns, engine)
    require_memory(4 * joint.size * len(columns), "quantities in a long frame")
    repeated = {name: np.tile(values, len(columns)) for name, values in _sample(joint).items()}
    names_of_rows = np.repeat(np.array(list(columns), dtype=object), joint.size)
    values = np.concatenate([np.empty(0), *columns.values()])
    return _framed(repeated | {".variable": names_of_rows, ".value": values}, engine)


def _sample(joint: JointDraws) -> dict[str, Any]:
    """Chain, iteration and number of each draw."""
    chains, each = joint.shape
    number = np.arange(chains * each)
    return dict(zip(SAMPLE, (number // each, number % each, number), strict=True))


def _framed(columns: Mapping[str, Any], engine: Engine) -> Any:
    if engine == "pandas":
        return pd.DataFrame(dict(columns))
    polars = require("polars", "polars")
    return polars.DataFrame(
        {n: v.tolist() if np.asarray(v).dtype == object else v for n, v in columns.items()}
    )


# --- which quantities ------------------------------------------------------------------


def _quantities(design: Design, symbols: Symbols, names: Any, *, regex: bool) -> list[Quantity]:
    """What names stand for, each once, in the order given."""
    if isinstance(names, Mapping):
        if regex:
            raise ValueError("regex=True is for names, not for a mapping of expressions.")
        return [Quantity(str(name), _read(symbols, text)) for name, text in names.items()]
    wanted = _labels(design) if names is None else _listed(names)
    if regex and names is not None:
        wanted = _matching(design, wanted)
    found: dict[str, Quantity] = {}
    for name in wanted:
        for label in _spread(design, symbols, name):
            found.setdefault(label, Quantity(label, _read(symbols, label)))
    return list(found.values())


def _listed(names: str | Sequence[str]) -> list[str]:
    several = [names] if isinstance(names, str) else names
    listed = list(several) if isinstance(several, Iterable) else []
    if not listed or not all(isinstance(name, str) for name in listed):
        raise ValueError(
            f"names={names!r}: a text, several, or a mapping of names to expressions is expected."
        )
    return listed


def _labels(design: Design) -> list[str]:
    """Labels of summary()."""
    return [row.label for row in parameters(design)]


def _matching(design: Design, patterns: Iterable[str]) -> list[str]:
    """Labels of parameters and random effects that have a match."""
    labels = _labels(design)
    for f in range(len(design.random)):
        labels += [effect.label for effect in _effects_of(design, f, "u")]
    found = []
    for pattern in patterns:
        try:
            own = [label for label in labels if re.search(pattern, label)]
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}.") from error
        if not own:
            raise ValueError(
                f"{pattern!r} matches no parameter; they are {', '.join(labels[:20])}."
            )
        found += own
    return found


def _spread(design: Design, symbols: Symbols, name: str) -> list[str]:
    """``u``, ``coef`` and ``u[g]`` as the labels of all levels; anything else as it is."""
    whole = _WHOLE.fullmatch(name)
    if whole is None or name in symbols.labels:
        return [name]
    groups = [factor.name for factor in design.random]
    if whole[2] is not None and whole[2] not in groups:
        return [name]
    places = range(len(groups)) if whole[2] is None else [groups.index(whole[2])]
    return [effect.label for f in places for effect in _effects_of(design, f, whole[1])]


def _effects_of(design: Design, f: int, kind: str) -> list[LevelEffect]:
    factor = design.random[f]
    coefs = coefficients_of(design, factor, kind)
    return [
        effect_at(design, f, level, coef, kind)
        for level in range(factor.n_levels)
        for coef in coefs
    ]


def _read(symbols: Symbols, text: str) -> Node:
    return parse_expression(text, symbols.labels, lambda label: symbols.effect(label).label)


def _columns(
    design: Design, symbols: Symbols, joint: JointDraws, quantities: Sequence[Quantity]
) -> dict[str, Array]:
    """Draws (S,) of each quantity."""
    nodes = [quantity.node for quantity in quantities]
    require_memory(joint.size * len(nodes), "quantities")
    effects = effect_values(design, joint, symbols.effects_of(nodes).values())
    linear, parameter = partial(_linear, design, joint), partial(joint_parameter, joint)
    return {
        quantity.name: np.broadcast_to(
            symbols.node_values(quantity.node, linear, parameter, effects), (joint.size,)
        ).astype(np.float64)
        for quantity in quantities
    }


def _linear(design: Design, joint: JointDraws, form: LinearForm) -> Array:
    weights = design.spec.fixed.reduce(form.weights[None])[0]
    return np.asarray(joint.beta @ weights + form.constant)


# --- by level --------------------------------------------------------------------------


def _by_level(
    design: Design, symbols: Symbols, joint: JointDraws, names: Any, *, regex: bool
) -> dict[str, Any]:
    """A row per draw, level and coefficient, with the other quantities in columns of their own."""
    if regex or isinstance(names, Mapping) or names is None:
        raise ValueError("format='levels' takes names such as ['beta[Days]', 'u[Subject]'].")
    listed = _listed(names)
    groups = [factor.name for factor in design.random]
    whole = {name: _WHOLE.fullmatch(name) for name in listed if name not in symbols.labels}
    levels = {
        name: (match[1], match[2] or groups[0])
        for name, match in whole.items()
        if match is not None and (match[2] in groups or (match[2] is None and len(groups) == 1))
    }
    if len({group for _, group in levels.values()}) != 1:
        known = ", ".join(f"u[{group}]" for group in groups) or "none"
        raise ValueError(
            f"format='levels' needs effects of one grouping factor among the names: {known}."
        )
    ((kind, group), *more) = levels.values()
    kinds = [kind, *(other for other, _ in more)]
    f = groups.index(group)
    factor = design.random[f]
    coefs = coefficients_of(design, factor, "coef" if "coef" in kinds else "u")
    rows = factor.n_levels * len(coefs)
    require_memory(joint.size * rows * (5 + len(listed)), "levels in a long frame")
    plain = [name for name in listed if name not in levels]
    others = _columns(
        design, symbols, joint, [Quantity(name, _read(symbols, name)) for name in plain]
    )
    table = {name: np.repeat(values, rows) for name, values in (_sample(joint) | others).items()}
    labels = np.repeat(np.array(level_names(factor), dtype=object), len(coefs))
    table[group] = np.tile(labels, joint.size)
    table["term"] = np.tile(np.array(coefs, dtype=object), joint.size * factor.n_levels)
    for kind in dict.fromkeys(kinds):
        table[kind] = _level_values(design, joint, f, kind, coefs)
    return table


def _level_values(
    design: Design, joint: JointDraws, f: int, kind: str, coefs: Sequence[str]
) -> Array:
    """Values (S J m,) of the coefficients of all levels; NaN of a random effect that is not."""
    factor = design.random[f]
    effects = [
        effect_at(design, f, level, coef, kind)
        for level in range(factor.n_levels)
        for coef in coefs
    ]
    values = effect_values(design, joint, effects)
    columns = [
        np.full(joint.size, np.nan) if e.own < 0 and kind == "u" else values[e.label]
        for e in effects
    ]
    return np.column_stack(columns).ravel()


# --- draws of predictions --------------------------------------------------------------


def prediction_draws(frame: Any, found: xr.Dataset, kind: Kind, engine: Engine) -> Any:
    """Draws of predictions in a long frame: see ``posterior.predict_draws()``.

    Parameters
    ----------
    frame : data frame or mapping
        The n rows predicted.
    found : xarray.Dataset
        Draws (chain, draw, n), the only variable.
    kind : {"linpred", "epred", "response"}
        What they are of.
    engine : {"pandas", "polars"}
        What the result is.
    """
    (name,) = found.data_vars
    values, index = found[name].to_numpy(), found[PREDICTION_DIM].to_numpy()
    rows = to_frame(frame)
    chains, each, n = values.shape
    if len(rows) != n:
        raise DataError(f"{n} of {len(rows)} rows can be predicted: give complete rows.")
    size = chains * each
    require_memory(size * n * (5 + rows.shape[1]), "predictions in a long frame")
    number = np.tile(np.arange(size), n)
    columns: dict[str, Any] = {
        str(name): rows[name].take(np.repeat(np.arange(n), size)).reset_index(drop=True)
        for name in rows
    }
    columns[".row"] = np.repeat(index, size)
    columns |= dict(zip(SAMPLE, (number // each, number % each, number), strict=True))
    columns[OF_KIND[kind]] = values.reshape(size, n).T.ravel()
    return _framed(columns, engine)


def check_engine(engine: Engine) -> None:
    """Raise unless a frame of this kind can be made."""
    check_choice(engine, get_args(Engine), "engine")
    if engine == "polars":
        require("polars", "polars")
