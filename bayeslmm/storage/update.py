"""A changed model: other data, formula, weights or priors, the rest as it was."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design, build_design
from bayeslmm.data.frames import column_names, listed, read_only
from bayeslmm.exceptions import DataError, PriorError
from bayeslmm.formula.evaluation import UserFunctions, own_functions
from bayeslmm.formula.grammar import Formula, parse
from bayeslmm.formula.update import update_formula
from bayeslmm.priors.defaults import resolve_priors
from bayeslmm.priors.families import LKJ, Prior
from bayeslmm.priors.keys import addressed
from bayeslmm.priors.record import Priors

_log = logging.getLogger(__name__)


def updated_design(
    design: Design,
    *,
    data: Any = None,
    formula: str | None = None,
    weights: Any = None,
    functions: UserFunctions | None = None,
) -> Design:
    """Design of a changed model.

    Parameters
    ----------
    design : Design
        The design as it is.
    data : data frame or mapping, optional
        New data; those of the model by default, which have its variables and its rows only.
    formula : str, optional
        A change of the formula, as :func:`~bayeslmm.formula.update.update_formula` reads
        it.
    weights : str, array-like or False, optional
        New precision weights; those of the model by default; none if False.
    functions : mapping of str to callable, optional
        The user's functions that are new or replace those of the model.

    Returns
    -------
    Design

    Raises
    ------
    DataError
        If new data are needed, or new weights.
    FormulaError
        If the formula is wrong.
    """
    number = not isinstance(weights, str) and np.ndim(weights) == 0
    if number and weights is not None and weights is not False:
        raise ValueError(f"weights={weights!r}: a column, an array or False is expected")
    if data is None and formula is None and weights is None and not functions:
        return design
    own = {**design.recipe.functions, **own_functions(functions)}
    changed = design.formula if formula is None else _changed_formula(design.formula, formula, own)
    if data is not None:
        new = _new_weights(design, data, weights)
        return build_design(changed, data, weights=new, functions=own)
    return _on_own_data(design, changed, weights, own)


def _changed_formula(old: Formula, formula: str, functions: UserFunctions) -> Formula:
    if not isinstance(formula, str):
        raise TypeError(f"formula must be text such as '~ . - x', got {type(formula).__name__}")
    return parse(update_formula(old, formula), functions)


def _new_weights(design: Design, data: Any, weights: Any) -> Any:
    """Weights for new data: as given, else the column of the old ones."""
    if weights is False or (weights is None and design.weights is None):
        return None
    if weights is not None:
        return weights
    column = design.recipe.weights
    if column is None:
        raise DataError(
            "The weights of the model were given as values, not as a column, so new data need new "
            "ones: give weights=, or weights=False for none."
        )
    if column not in column_names(data):
        raise DataError(
            f"The new data have no column `{column}`, which held the weights: give weights=, or "
            "weights=False for none."
        )
    return column


def _on_own_data(
    design: Design, formula: Formula, weights: Any, functions: UserFunctions
) -> Design:
    absent = sorted(formula.variables - set(design.data.columns))
    if absent:
        raise DataError(
            f"The model keeps the variables of its own formula only, {listed(design.data.columns)},"
            f" and {listed(absent)} is not among them: give data= too."
        )
    if len(design.dropped):
        _log.warning(
            "%d rows stay dropped, also where the new formula does not need what they lack: give "
            "data= to start from all rows",
            len(design.dropped),
        )
    values, column = weights, weights if isinstance(weights, str) else None
    if weights is None or (isinstance(weights, str) and weights == design.recipe.weights):
        values, column = design.weights, design.recipe.weights
    elif weights is False:
        values = None
    elif isinstance(weights, str) and weights not in design.data:
        raise DataError(
            f"The model does not keep the column `{weights}`: give data= too, or the values."
        )
    built = build_design(formula, design.data, weights=values, functions=functions)
    recipe = replace(built.recipe, weights=column)
    return replace(built, dropped=_all_dropped(design, built.dropped), recipe=recipe)


def _all_dropped(design: Design, more: NDArray[np.intp]) -> NDArray[np.intp]:
    """Positions in the original data of the rows dropped then, and of `more` of those kept."""
    rows = np.delete(np.arange(design.n + len(design.dropped)), design.dropped)
    return read_only(np.sort(np.concatenate([design.dropped, rows[more]])))


# --- priors ----------------------------------------------------------------------------


def updated_priors(old: Priors, design: Design, user: Any = None) -> Priors:
    """Priors of a changed model.

    Parameters
    ----------
    old : Priors
        The priors as they were.
    design : Design
        The design of the changed model.
    user : {"default", "flat"} or mapping, optional
        By default, and with a mapping, the priors that the user had given are kept and the other
        ones are computed from the new data. A mapping adds to them; None for a prior takes the
        user's one away. "default" and "flat" forget all of them.

    Returns
    -------
    Priors

    Raises
    ------
    PriorError
        If a prior that the user had given is on parameters none of which the model still has. A
        key for several parameters, such as "sd[g]", stays as long as it addresses one of them.
    """
    if user is not None and not isinstance(user, Mapping):
        return resolve_priors(design, user)
    preset: Literal["default", "flat"] = "flat" if "flat" in old.sources.values() else "default"
    fresh = resolve_priors(design, preset)
    changes = {} if user is None else dict(user)
    kept = _kept(old, fresh, list(changes))
    given = {key: value for key, value in changes.items() if value is not None}
    if not kept and not given:
        return fresh
    return resolve_priors(design, {**kept, **given}, preset=preset)


def _kept(old: Priors, fresh: Priors, changed: Sequence[str]) -> dict[str, Prior | LKJ]:
    """The user's earlier priors that no changed key addresses."""
    replaced = set[str]()
    for key in changed:
        found = _addressed(old, key) | _addressed(fresh, key)
        replaced |= found or addressed(fresh, [key])  # which raises
    mine = {k: record for k, record in old.records().items() if old.sources[k] == "user"}
    kept = {key: record for key, record in mine.items() if key not in replaced}
    gone = [key for key in kept if key not in fresh.records()]
    broad = [key for key in gone if _given_broadly(old, fresh, key)]
    if broad:
        _log.info("the new model has no %s; the prior stays that of the others", listed(broad))
    kept = {key: record for key, record in kept.items() if key not in broad}
    if gone := [key for key in gone if key not in broad]:
        shown = ", ".join(f"{key!r}: None" for key in gone)
        raise PriorError(
            f"The new model has no parameter {', '.join(gone)}, to which you had given a prior. "
            f"Take it away with priors={{{shown}}}, or start anew with priors='default'."
        )
    return kept


def _given_broadly(old: Priors, fresh: Priors, name: str) -> bool:
    """Whether a key such as "sd[g]" can have given a prior, and addresses what remains with it."""
    records, remain = old.records(), set(fresh.records())
    keys = ["beta", "sd", "cor"]
    keys += [f"{kind}[{factor}]" for factor in old.factors for kind in ("sd", "cor")]
    for key in keys:
        names = _addressed(old, key)
        if name not in names or any(old.sources[other] != "user" for other in names):
            continue
        if any(str(records[other]) == str(records[name]) for other in names & remain):
            return True
    return False


def _addressed(priors: Priors, key: str) -> set[str]:
    try:
        return addressed(priors, [key])
    except PriorError:
        return set()
