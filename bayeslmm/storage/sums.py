"""A model of data beyond memory as plain values and back: sums over the rows, and no rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr

from bayeslmm.covariance.kinds import structure_of
from bayeslmm.data.design import Encodings, Spec
from bayeslmm.data.random_factors import FactorSpec
from bayeslmm.data.random_terms import amalgamated, factor_spec
from bayeslmm.data.summarised import SummarisedDesign, Summary
from bayeslmm.data.survey import sample_columns, sample_encodings
from bayeslmm.exceptions import BayesLMMError, StorageError
from bayeslmm.formula.evaluation import UserFunctions, own_functions
from bayeslmm.formula.grammar import Formula, RandomTerm
from bayeslmm.formula.rank import row_space
from bayeslmm.priors.record import Priors
from bayeslmm.storage.checked import check_fit
from bayeslmm.storage.frames import Arrays, Description, Stored
from bayeslmm.storage.model import fixed_value, fixed_values, stored_formula, stored_priors
from bayeslmm.storage.priors import pack_priors
from bayeslmm.storage.random_factors import pack_grouping
from bayeslmm.storage.summaries import (
    pack_products,
    pack_summary,
    unpack_levels,
    unpack_products,
    unpack_summary,
)


def pack_sums(design: SummarisedDesign, priors: Priors) -> tuple[Description, Arrays]:
    """Describe a model completely.

    Parameters
    ----------
    design : SummarisedDesign
    priors : Priors

    Returns
    -------
    description : dict
        Fit for JSON.
    arrays : dict of str to ndarray
        The sums.

    Raises
    ------
    StorageError
        If levels or priors have types that cannot be stored.
    """
    spec, summary = design.spec, design.summary
    arrays: Arrays = {"kept": np.asarray(spec.fixed.kept)}
    described = pack_summary(spec.formula, spec.weights, spec.residual, summary, arrays)
    pack_products(design.products, arrays)
    return {
        **described,
        "fixed": {key: fixed_value(value) for key, value in spec.known.items()},
        "coefs": list(spec.fixed.coefs_full),
        "factors": [_pack_factor(i, factor, arrays) for i, factor in enumerate(spec.random)],
        "priors": pack_priors(priors, arrays),
    }, arrays


def _pack_factor(i: int, factor: FactorSpec, arrays: Arrays) -> Description:
    return {
        **pack_grouping(factor, arrays, f"factor {i}"),
        "coefs": list(factor.coefs),
        "blocks": [list(block) for block in factor.blocks],
        "kinds": list(factor.kinds),
    }


# --- back ------------------------------------------------------------------------------


def unpack_sums(
    description: Description,
    arrays: Stored,
    posterior: xr.Dataset,
    functions: UserFunctions | None = None,
) -> tuple[SummarisedDesign, Priors]:
    """The model that :func:`pack_sums` described, without evaluating its formula.

    Parameters
    ----------
    description, arrays : dict, mapping of str to ndarray
        The model.
    posterior : xarray.Dataset
        Its draws, which must have its parameters.
    functions : mapping of str to callable, optional
        The user's functions that the formula calls.

    Returns
    -------
    design : SummarisedDesign
    priors : Priors

    Raises
    ------
    StorageError
        If the parts do not fit each other.
    """
    functions = own_functions(functions)
    formula = stored_formula(description["formula"], functions)
    summary, residual = unpack_summary(formula, description, arrays)
    kept, names = arrays["kept"], description["coefs"]
    whole = summary.sides[formula.right]
    check_fit(kept.dtype == bool and kept.shape == (len(names),), "fixed effects")
    check_fit(len(whole.centre) == len(names) + 1, "fixed effects")
    spec = Spec(
        formula=formula,
        functions=functions,
        weights=description["weights"],
        fixed=row_space(whole.take(np.append(np.ones(len(names), bool), False)), names, kept),
        random=_factors(formula, description["factors"], arrays),
        residual=residual,
        encodings=_Evaluation(formula, functions, summary, tuple(names)),
        known=fixed_values(description["fixed"]),
    )
    products = unpack_products(
        (len(spec.fixed.coefs), [(len(f.levels), len(f.coefs)) for f in spec.random]),
        [structure_of(factor) for factor in spec.random],
        summary,
        residual,
        arrays,
    )
    design = SummarisedDesign(spec, summary, products)
    return design, stored_priors(description["priors"], arrays, design, posterior)


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """How columns are built in new rows, evaluated on the stored sample when there are some."""

    formula: Formula
    functions: UserFunctions
    summary: Summary
    names: tuple[str, ...]

    def __call__(self) -> Encodings:
        return self._encodings

    @cached_property
    def _encodings(self) -> Encodings:
        given = (self.summary.sample, self.functions, self.summary.states)
        try:
            columns = sample_columns(self.formula, *given)
            found = sample_encodings(self.formula, columns, *given)
        except BayesLMMError as error:
            raise StorageError(
                f"The formula of the saved model cannot be evaluated any more: {error}"
            ) from error
        if columns[self.formula.right].names != self.names:
            raise StorageError(
                "The installed libraries make other columns of the saved formula: "
                f"{', '.join(columns[self.formula.right].names)}, which were "
                f"{', '.join(self.names)}. Load it with the versions it was saved with."
            )
        return found


def _factors(
    formula: Formula, stored: Sequence[Description], arrays: Stored
) -> tuple[FactorSpec, ...]:
    groups = amalgamated(formula)
    check_fit(len(groups) == len(stored), "grouping factors")
    pairs = enumerate(zip(groups.items(), stored, strict=True))
    return tuple(_factor(i, key, terms, one, arrays) for i, ((key, terms), one) in pairs)


def _factor(
    i: int, key: str, terms: Sequence[RandomTerm], stored: Description, arrays: Stored
) -> FactorSpec:
    blocks = [tuple(block) for block in stored["blocks"]]
    coefs = [str(coef) for coef in stored["coefs"]]
    places = sorted(place for block in blocks for place in block)
    check_fit(places == [*range(len(coefs))] and len(blocks) == len(stored["kinds"]), "blocks")
    none = [None] * len(terms)
    grouping = unpack_levels(i, terms[0].factors, stored, arrays)
    return factor_spec(grouping, key, terms, coefs, blocks, stored["kinds"], strata=none)
