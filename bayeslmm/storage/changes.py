"""More draws for a posterior, and a model with other data, formula, weights or priors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.building import build_design
from bayeslmm.data.design import Design, Spec
from bayeslmm.data.frames import column_names, plain_frame, read_only
from bayeslmm.data.inputs import fixed_mapping
from bayeslmm.data.known_covariance import KnownCovariance, known_covariances
from bayeslmm.data.relationships import Relationship, relationships_of
from bayeslmm.data.seeds import RECORDED, known_seed, recorded_seeds, seeded
from bayeslmm.data.sources import open_source
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.data.unobserved import Missing, Unobserved, refuse_incomplete
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import DataError, PriorError, SamplingError, listed
from bayeslmm.formula.contrasts import check_coded, coded_change, coded_formula
from bayeslmm.formula.evaluation import UserFunctions, own_functions
from bayeslmm.formula.grammar import Formula, parse, parse_scale
from bayeslmm.formula.residual import ResidualFormula, parse_residual
from bayeslmm.formula.update import update_formula
from bayeslmm.likelihood.parts import streamed_design
from bayeslmm.priors.defaults import resolve_priors
from bayeslmm.priors.families import LKJ, Prior
from bayeslmm.priors.keys import addressed
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.collapsed import find_mode, gaussian_root
from bayeslmm.sampling.engine import require_positive, sample_posterior
from bayeslmm.sampling.groups import effect_group, log_likelihood, log_prior, summarise_effects
from bayeslmm.sampling.joint_draws import points_of
from bayeslmm.sampling.tree import EFFECT_GROUP, SAMPLE_DIMS, assemble
from bayeslmm.schema import BETA

_log = logging.getLogger(__name__)

Array = NDArray[np.float64]

RUNS = "draws_of_runs"
"""Attribute with the draws per chain of each run."""

NO_SOURCE = (
    "The rows of the model have to be read again for this, and it does not know where they are: it "
    "was built from {words}, and pickles and files do not keep that. Give data= too."
)

BY_CHAIN: Mapping[str, Callable[[Array, Array], Array]] = {
    "n_evaluations": np.add,
    "pareto_k": np.fmax,
}
"""How statistics of whole chains combine: work adds up, of diagnostics the worse one counts."""

_OWN = ("posterior", "sample_stats", "observed_data", "constant_data", EFFECT_GROUP)


def extended_tree(
    model: Model,
    data: xr.DataTree,
    draws: int,
    random_seed: int | np.random.Generator | None = None,
    options: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Draw again by the engine of a posterior and join the draws.

    Parameters
    ----------
    model : Model
        Design, priors and what is computed from them once.
    data : xarray.DataTree
        The posterior.
    draws : int
        Further draws per chain.
    random_seed : int or numpy.random.Generator, optional
        Seed; no stream of random numbers that the first run could have used is used again.
    options : mapping, optional
        Further arguments of the engine.

    Returns
    -------
    xarray.DataTree
    """
    require_positive(draws=draws)
    posterior = data["posterior"].to_dataset()
    method = str(data.attrs["method"])
    seed = known_seed(random_seed)
    new = sample_posterior(
        model,
        method=method,  # type: ignore[arg-type]
        draws=draws,
        chains=posterior.sizes["chain"],
        random_seed=fresh_generator(seed, posterior.sizes["draw"]),
        options={**_engine_options(data, method), **(options or {})},
    )
    groups = {name: node.to_dataset() for name, node in data.children.items()}
    joined = joined_draws(posterior, new["posterior"].to_dataset())
    statistics = joined_statistics(groups["sample_stats"], new["sample_stats"].to_dataset())
    if method == "laplace":
        runs = [
            (tree["posterior"].to_dataset(), tree["sample_stats"].to_dataset())
            for tree in (data, new)
        ]
        weights = _joined_weights(runs, model)
        statistics["log_weight"] = (SAMPLE_DIMS, weights)
    core = {**groups, "posterior": joined, "sample_stats": statistics}
    kept = _other_groups(core, model)
    attrs = joined_attrs(data.attrs, new.attrs, (posterior.sizes["draw"], draws))
    return assemble(kept, {**attrs, RECORDED: recorded_seeds(seed, data.attrs)})


def fresh_generator(
    random_seed: int | np.random.Generator | None, done: int
) -> np.random.Generator:
    """Generator whose stream differs from that of the seed itself and of every other extension."""
    base = int(seeded(random_seed).integers(2**63))
    return np.random.default_rng([base, done])


def _engine_options(data: xr.DataTree, method: str) -> dict[str, Any]:
    """Arguments of the engine that the posterior tells."""
    if method == "collapsed":
        return {"store_u": EFFECT_GROUP not in data.children}
    if method != "nuts":
        return {}
    options: dict[str, Any] = {"form": str(data.attrs.get("form", "noncentered"))}
    if "tuning_steps" in data.attrs:
        options["tune"] = int(data.attrs["tuning_steps"])
    return options


# --- joining ---------------------------------------------------------------------------


def joined_draws(one: xr.Dataset, two: xr.Dataset) -> xr.Dataset:
    """Datasets of chains and draws, the second behind the first, draws numbered on."""
    steps = np.arange(one.sizes["draw"] + two.sizes["draw"])
    two = two.assign_coords(chain=one["chain"])
    variables = {}
    for name, variable in one.variables.items():
        if "draw" not in variable.dims or name == "draw":
            continue
        if name not in two.variables:
            raise SamplingError(f"The new draws lack {name}, which the posterior has.")
        other = two[name].variable.transpose(*variable.dims)
        variables[name] = xr.Variable.concat([variable, other], dim="draw")
    coords = {name: values for name, values in one.coords.items() if "draw" not in values.dims}
    joined = xr.Dataset(variables, coords={**coords, "draw": steps}, attrs=one.attrs)
    joined = joined.set_coords([name for name in variables if name in one.coords])
    if "created_at" in two.attrs:
        joined.attrs["created_at"] = two.attrs["created_at"]
    if "sampling_time" in one.attrs and "sampling_time" in two.attrs:
        joined.attrs["sampling_time"] = one.attrs["sampling_time"] + two.attrs["sampling_time"]
    return joined


def joined_statistics(one: xr.Dataset, two: xr.Dataset) -> xr.Dataset:
    """Sampler statistics of two runs that both have, by draw or as :data:`BY_CHAIN` says."""
    common = [
        name
        for name, values in one.data_vars.items()
        if name in two and ("draw" in values.dims or name in BY_CHAIN)
    ]
    joined = joined_draws(one[common], two)
    for name in common:
        if "draw" not in one[name].dims:
            values = BY_CHAIN[str(name)](one[name].to_numpy(), two[name].to_numpy())
            joined[name] = (one[name].dims, values)
    return joined


def _joined_weights(runs: Sequence[tuple[xr.Dataset, xr.Dataset]], model: Model) -> Array:
    """Log weights of Laplace draws: each run has its own constant, which must become one.

    `runs` are the draws and the statistics of each.
    """
    mode = find_mode(model)
    root = gaussian_root(mode)
    parts = []
    for draws, statistics in runs:
        weights, density = (statistics[name].to_numpy() for name in ("log_weight", "lp"))
        best = int(np.argmax(weights))
        x = _coordinates(draws, best, model.design, model.priors)[model.priors.coordinates.free]
        noise = np.linalg.solve(root, x - mode.x)
        exact = density.ravel()[best] + 0.5 * np.sum(noise**2)
        parts.append(weights - weights.ravel()[best] + exact)
    joined = np.concatenate(parts, axis=1)
    return np.asarray(joined - np.max(joined))


def _coordinates(draws: xr.Dataset, place: int, design: Design, priors: Priors) -> Array:
    """Unconstrained coordinates of one draw."""
    every = points_of(design, draws)
    beta = draws[BETA].to_numpy().reshape(len(every.sigma), design.p)
    point = replace(every, beta=beta).take(slice(place, place + 1))
    coordinates = priors.coordinates
    return coordinates.vector(coordinates.to_working(point))[0]


def joined_attrs(
    one: Mapping[Any, Any], two: Mapping[Any, Any], sizes: Sequence[int]
) -> dict[Any, Any]:
    """Root attributes of two runs joined."""
    result = dict(one)
    result[RUNS] = [*[int(n) for n in one.get(RUNS, sizes[:1])], int(sizes[1])]
    if "sampling_time" in one and "sampling_time" in two:
        result["sampling_time"] = one["sampling_time"] + two["sampling_time"]
    if "surrogate_error" in one and "surrogate_error" in two:
        result["surrogate_error"] = max(one["surrogate_error"], two["surrogate_error"])
    if "log_evidence" in one and "log_evidence" in two:
        value, error = combined_estimate(
            [one["log_evidence"], two["log_evidence"]],
            [one["log_evidence_error"], two["log_evidence_error"]],
        )
        result |= {"log_evidence": value, "log_evidence_error": error}
    return result


def combined_estimate(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Independent estimates of one number, weighted by their inverse variances, and the error.

    An estimate without an error (zero) is taken for exact.
    """
    variances = np.square(np.array(errors, dtype=float))
    if np.any(variances == 0.0):
        return float(values[int(np.argmin(variances))]), 0.0
    weights = 1.0 / variances
    value = float(np.sum(weights * np.array(values)) / np.sum(weights))
    return value, float(1.0 / np.sqrt(np.sum(weights)))


# --- other groups ----------------------------------------------------------------------


def _other_groups(groups: Mapping[str, xr.Dataset], model: Model) -> dict[str, xr.Dataset]:
    """Groups of the joined draws: computed anew where that is exact, left out where not."""
    tree = xr.DataTree.from_dict({name: groups[name] for name in ("posterior", "sample_stats")})
    kept: dict[str, xr.Dataset] = {}
    gone = []
    for name, dataset in groups.items():
        if name == EFFECT_GROUP:
            kept[name] = _effect_summaries(model, groups["posterior"])
        elif name == "log_likelihood":
            kept[name] = log_likelihood(tree, model.design)
        elif name == "log_prior":
            kept[name] = log_prior(tree, model.priors)
        elif name in _OWN or name.startswith("prior") or "draw" not in dataset.dims:
            kept[name] = dataset
        else:
            gone.append(name)
    if gone:
        _log.warning("Groups of the old draws are left out: %s", ", ".join(gone))
    return kept


def _effect_summaries(model: Model, posterior: xr.Dataset) -> xr.Dataset:
    design, priors = model.design, model.priors
    points = points_of(design, posterior)
    if priors.beta_sampled:
        beta = posterior[BETA].to_numpy().reshape(len(points.sigma), design.p)
        points = replace(points, beta=beta)
    return effect_group(design, summarise_effects(model.system, priors, points))


# --- a changed model: other data, formula, weights or priors ------------------------------


def updated_design(
    design: Design,
    *,
    data: Any = None,
    formula: str | None = None,
    weights: Any = None,
    functions: UserFunctions | None = None,
    contrasts: Mapping[str, Any] | None = None,
    residual: str | Literal[False] | None = None,
    relationships: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
    missing: Missing | None = None,
    family: str | None = None,
    sigma: str | Literal[False] | None = None,
    covariances: Mapping[str, Any] | None = None,
) -> Design:
    """Design of a changed model.

    Parameters
    ----------
    design : Design
        The design as it is.
    data : data frame, mapping or source, optional
        New data; those of the model by default, which have its variables and its rows only. Data
        beyond memory are read again.
    formula : str, optional
        A change of the formula, as :func:`~bayeslmm.formula.update.update_formula` reads
        it.
    weights : str, array-like or False, optional
        New precision weights; those of the model by default; none if False.
    functions : mapping of str to callable, optional
        The user's functions that are new or replace those of the model.
    contrasts : mapping of str, optional
        Contrasts of factors that are new or replace those of the model; None for the default ones.
    residual : str or False, optional
        A new structure of the residuals; that of the model by default; none if False.
    relationships : mapping of str, optional
        Relationships that are new or replace those of the model; None takes one away.
    fixed : mapping of str, optional
        Known parameters that are new or replace those of the model; None frees one.
    missing : {"drop", "keep", "raise"}, optional
        What becomes of incomplete rows; as of the model by default, but for "raise".
    family : {"gaussian", "student"}, optional
        Distribution of the residuals; that of the model by default.
    sigma : str or False, optional
        Predictors of the log residual scale; those of the model by default; none if False.
    covariances : mapping of str, optional
        A known covariance matrix that is new or replaces that of the model.

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
    _check_kinds(weights, residual)
    changes = (data, formula, weights, contrasts, residual, fixed, missing, family, sigma)
    given = functions or relationships or covariances
    if all(change is None for change in changes) and not given:
        return design
    held = {**design.spec.known, **fixed_mapping(fixed)}
    held = {key: value for key, value in held.items() if value is not None}
    own = {**design.spec.functions, **own_functions(functions)}
    changed = _changed_formula(design.formula, formula, contrasts, own)
    if contrasts is not None:
        new = data is not None and open_source(data) is None
        check_coded(plain_frame(data, list(contrasts)) if new else design.sample, contrasts)
    known = _changed_relationships(design.spec, changed, relationships or {})
    law = _changed_residual(design.spec, residual)
    matrices = _changed_covariances(design.spec, law, covariances)
    scale = sigma or None
    if sigma is None and design.spec.scale is not None:
        scale = design.spec.scale.formula.source
    missing = missing or ("drop" if design.unobserved is None else "keep")
    if isinstance(design, SummarisedDesign) and data is None:
        others = (formula, weights, contrasts, residual, family, sigma)
        same = missing != "keep" and all(change is None for change in others)
        if same and not given:
            refuse_incomplete(design, missing)
            spec = replace(design.spec, known=held)
            return SummarisedDesign(spec, design.summary, design.products, design.source)
        if design.source is None:
            raise DataError(NO_SOURCE.format(words=design.summary.words))
    source = open_source(data) if data is not None else getattr(design, "source", None)
    if source is not None:
        column = _new_weights(design, source.names, weights)
        form = None if law is None else law.source
        return streamed_design(
            changed,
            source,
            column,
            own,
            held,
            form,
            known,
            missing=missing,
            family=family or design.spec.family,
            sigma=scale,
            covariances=matrices,
        ).with_source(source)
    build = partial(
        build_design,
        changed,
        functions=own,
        residual=law,
        relationships=known,
        fixed=held,
        missing=missing,
        family=family or design.spec.family,
        sigma=scale,
        covariances=matrices,
    )
    if data is not None:
        return build(data, weights=_new_weights(design, partial(column_names, data), weights))
    variables = changed.variables | (frozenset[str]() if law is None else law.variables)
    variables |= frozenset[str]() if scale is None else parse_scale(scale, own).variables
    return _on_own_data(design, variables, weights, missing, build)


def _check_kinds(weights: Any, residual: Any) -> None:
    number = not isinstance(weights, str) and np.ndim(weights) == 0
    if number and weights is not None and weights is not False:
        raise ValueError(f"weights={weights!r}: a column, an array or False is expected")
    if residual is not None and residual is not False and not isinstance(residual, str):
        raise ValueError(f"residual={residual!r}: a structure or False is expected.")


def _changed_residual(spec: Spec, given: str | Literal[False] | None) -> ResidualFormula | None:
    """The structure of the residuals that is given, or stays."""
    if given is None:
        return None if spec.residual is None else spec.residual.formula
    return parse_residual(given) if given else None


def _changed_covariances(
    spec: Spec, law: ResidualFormula | None, given: Mapping[str, Any] | None
) -> dict[str, KnownCovariance]:
    """The known covariance matrix that the structure of the residuals names, and those given."""
    kept = {name: one for name, one in spec.covariances.items() if law and name == law.matrix}
    return kept | known_covariances(given)


def _changed_relationships(
    spec: Spec, formula: Formula, given: Mapping[str, Any]
) -> dict[str, Relationship]:
    """Relationships of the grouping factors that stay, and those given."""
    groups = {term.group for term in formula.random}
    kept = {name: known for name, known in spec.relationships.items() if name in groups}
    new = relationships_of({name: value for name, value in given.items() if value is not None})
    return {name: known for name, known in kept.items() if name not in given} | new


def _changed_formula(
    old: Formula,
    formula: str | None,
    contrasts: Mapping[str, Any] | None,
    functions: UserFunctions,
) -> Formula:
    if formula is not None and not isinstance(formula, str):
        raise TypeError(f"formula must be text such as '~ . - x', got {type(formula).__name__}")
    new = old
    if formula is not None:
        new = parse(update_formula(old, coded_change(old, formula)), functions)
    return new if contrasts is None else parse(coded_formula(new, contrasts), functions)


def _new_weights(design: Design, names: Callable[[], list[str]], weights: Any) -> Any:
    """Weights for new data: as given, else the column of the old ones."""
    if weights is False or (weights is None and (not design.weighted or design.spec.has_errors)):
        return None
    if weights is not None:
        return weights
    column = design.spec.weights
    if column is None:
        raise DataError(
            "The weights of the model were given as values, not as a column, so new data need new "
            "ones: give weights=, or weights=False for none."
        )
    if column not in names():
        raise DataError(
            f"The new data have no column `{column}`, which held the weights: give weights=, or "
            "weights=False for none."
        )
    return column


def _on_own_data(
    design: Design,
    variables: frozenset[str],
    weights: Any,
    missing: Missing,
    build: Callable[..., Design],
) -> Design:
    absent = sorted(variables - set(design.data.columns))
    if absent:
        raise DataError(
            f"The model keeps the variables of its own formula only, {listed(design.data.columns)},"
            f" and {listed(absent)} is not among them: give data= too."
        )
    if missing == "keep" and design.unobserved is None and len(design.dropped):
        raise DataError(
            f"The model does not have the {len(design.dropped)} rows that it dropped, so that none "
            "of them can be kept to be predicted: give data= too."
        )
    refuse_incomplete(design, missing)
    if design.n_dropped:
        _log.warning(
            "%d rows stay dropped, also where the new formula does not need what they lack: give "
            "data= to start from all rows",
            design.n_dropped,
        )
    values, column = weights, weights if isinstance(weights, str) else None
    kept = design.unobserved if missing == "keep" else None
    if weights is None and design.spec.has_errors:
        values, column = None, None
    elif weights is None or (isinstance(weights, str) and weights == design.spec.weights):
        values, column = _all_weights(design.weights, kept), design.spec.weights
    elif weights is False:
        values = None
    elif isinstance(weights, str) and weights not in design.data:
        raise DataError(
            f"The model does not keep the column `{weights}`: give data= too, or the values."
        )
    elif not isinstance(weights, str) and kept is not None and kept.n:
        raise DataError(
            f"The model has {kept.n} rows without a response, which need weights too: give data= "
            "with a column of weights."
        )
    data = design.data if kept is None or not kept.n else pd.concat([design.data, kept.data])
    built = build(data, weights=values)
    spec = replace(built.spec, weights=column)
    return _in_original_places(replace(built, spec=spec), design, kept)


def _all_weights(weights: Array | None, kept: Unobserved | None) -> Array | None:
    """Weights of the rows used and of those to predict."""
    if weights is None or kept is None or kept.weights is None:
        return weights
    return np.concatenate([weights, kept.weights])


def _in_original_places(built: Design, design: Design, kept: Unobserved | None) -> Design:
    """A design on rows of another one, its rows not used named by their places in all data."""
    used = np.delete(np.arange(design.n + len(design.dropped)), design.dropped)
    places = used if kept is None else np.concatenate([used, kept.rows])
    lost = np.union1d(design.dropped, places[built.dropped])
    if built.unobserved is not None:
        own = replace(built.unobserved, rows=read_only(places[built.unobserved.rows]))
        built = replace(built, unobserved=own)
    return replace(built, dropped=read_only(lost.astype(np.intp)))


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
    keys = ["beta", "sd", "cor", "beta_sigma", "sd_sigma", "cor_sigma"]
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
