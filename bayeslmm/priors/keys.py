"""The keys by which a user addresses parameters, and what may be put there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np

from bayeslmm.covariance.occasions import OverOccasions
from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.residual import Residual
from bayeslmm.exceptions import PriorError
from bayeslmm.priors.families import LKJ, Flat, HalfFlat, Prior, Uniform
from bayeslmm.priors.pymc_priors import as_prior, correlation_size
from bayeslmm.priors.record import Labels, coef_label, cor_label
from bayeslmm.priors.words import EVERYWHERE, POSITIVE, Bounds, prior_of_words

Slot = tuple[str, int, int]
"""Kind of parameter, grouping factor, place: of a fixed effect, of a standard deviation, or of the
correlations of a block."""

INTERCEPT = "Intercept"


def addressed(labels: Labels, keys: Iterable[str]) -> set[str]:
    """Names in the table of the parameters that a user's keys address; raises for unknown ones."""
    slots, names = slots_by_key(labels), slot_names(labels)
    given = match_keys(slots, dict.fromkeys(keys))
    return {names[slot] for key in given for slot in slots[key]}


def priors_by_slot(labels: Labels, user: Mapping[str, Any]) -> dict[Slot, Prior | LKJ]:
    """A user's priors by parameter, checked; the more specific key wins, whatever the order."""
    slots = slots_by_key(labels)
    given = match_keys(slots, user)
    result: dict[Slot, Prior | LKJ] = {}
    for key in slots:
        if key in given:
            words = isinstance(given[key], str)
            prior = None if words else as_prior(given[key], key)
            for slot in slots[key]:
                own = prior or as_prior(prior_of_words(given[key], key, _bounds(labels, slot)), key)
                result[slot] = _fitting(labels, slot, own, given[key], key)
    return result


def _bounds(labels: Labels, slot: Slot) -> Bounds:
    """Where a parameter lives; matrices of correlations have no bounds."""
    kind, f, place = slot
    if kind in ("sd", "sigma", "sd_sigma", "nu"):
        return POSITIVE
    if kind == "cor" and isinstance(part := labels.structures[f].parts[place], Pattern):
        return part.lowest, 1.0
    law = labels.residual.correlation
    if kind == "cor_residual" and law is not None:
        on_matrix = isinstance(law, OverOccasions) and law.on_matrix
        return EVERYWHERE if on_matrix else (law.lowest, 1.0)
    return EVERYWHERE


def _fitting(labels: Labels, slot: Slot, prior: Prior | LKJ, given: Any, key: str) -> Prior | LKJ:
    kind, f, place = slot
    if labels.scale_labels is not None and kind == "cor_sigma":
        size = len(labels.scale_labels.blocks[f][place])
        return _correlation_prior(prior, given, size, key)
    if kind == "cor_residual":
        return _residual_correlation(labels.residual, prior, given, key)
    if kind == "cor":
        part = labels.structures[f].parts[place]
        if isinstance(part, Pattern):
            return _parameter_prior(prior, part, key)
        return _correlation_prior(prior, given, len(labels.blocks[f][place]), key)
    if isinstance(prior, LKJ):
        what = WORDS.get(kind, "standard deviation")
        raise PriorError(f"{prior} is a prior for correlations; {key!r} is a {what}.")
    if kind == "nu":
        return _degrees_of_freedom(prior, key)
    return prior if kind in ("beta", "power", "beta_sigma") else _scale_prior(prior, key)


WORDS = {"beta": "coefficient", "beta_sigma": "coefficient", "nu": "number of degrees of freedom"}


def _degrees_of_freedom(prior: Prior, key: str) -> Prior:
    if prior.positive and prior.proper:
        return prior
    raise PriorError(
        f"The prior {prior} for {key!r} must be proper and live on the positive half line: under a "
        "flat one the posterior has no total, as large values all mean normal residuals. Use for "
        "example pm.Gamma.dist(2, 0.1)."
    )


def _residual_correlation(
    structure: Residual, prior: Prior | LKJ, given: Any, key: str
) -> Prior | LKJ:
    law = structure.correlation
    assert law is not None
    if isinstance(law, OverOccasions) and law.on_matrix:
        return _correlation_prior(prior, given, law.structure.n_coefs, key)
    if type(prior) is Flat:
        return Uniform(law.lowest, 1.0)
    if isinstance(prior, LKJ):
        raise PriorError(
            f"{prior} is a prior for correlation matrices; {key!r} is a number between "
            f"{law.lowest:.3g} and 1: give for example pm.Uniform.dist({law.lowest:.3g}, 1)."
        )
    return prior


def slots_by_key(labels: Labels) -> dict[str, list[Slot]]:
    """Parameters that each valid key addresses, from the general keys to the specific ones."""
    structures = labels.structures
    betas: list[Slot] = [("beta", 0, j) for j in range(len(labels.coefs))]
    sds: list[list[Slot]] = [
        [("sd", f, s) for s in range(structure.n_sds)] for f, structure in enumerate(structures)
    ]
    cors: list[list[Slot]] = [
        [("cor", f, b) for b, part in enumerate(structure.parts) if part.n_cors]
        for f, structure in enumerate(structures)
    ]
    slots = {
        "beta": [s for s in betas if labels.coefs[s[2]] != INTERCEPT],
        "sd": [slot for row in sds for slot in row],
        "cor": [slot for row in cors for slot in row],
        "sigma": [("sigma", 0, j) for j in range(len(labels.residual.scales))],
        "power_residual": [("power", 0, j) for j in range(len(labels.residual.powers))],
        "cor_residual": [("cor_residual", 0, arm) for arm in _arms(labels)],
    }
    for f, factor in enumerate(labels.factors):
        slots[f"sd[{factor}]"] = sds[f]
        slots[f"cor[{factor}]"] = cors[f]
        slots |= _stratum_slots(labels, f)
    if labels.scale_labels is not None:
        slots |= labels.scale_labels.keys
    for names in (slot_names(labels), {s: f"beta[{labels.coefs[s[2]]}]" for s in betas}):
        for slot, name in names.items():
            slots.setdefault(name, [slot])
    return {key: value for key, value in slots.items() if value}


def _stratum_slots(labels: Labels, f: int) -> dict[str, list[Slot]]:
    """Keys of the strata of a grouping factor: ``"sd[g, arm[A]]"``, ``"cor[g, arm[A]]"``."""
    names = labels.strata[f] if labels.strata else ()
    structure, slots = labels.structures[f], dict[str, list[Slot]]()
    for stratum in dict.fromkeys(name for name in names if name):
        places = structure.sd_places[[name == stratum for name in names]]
        own = [b for b, block in enumerate(structure.blocks) if names[block[0]] == stratum]
        correlated = [b for b in own if structure.parts[b].n_cors]
        inside = f"{labels.factors[f]}, {stratum}"
        slots[f"sd[{inside}]"] = [("sd", f, int(s)) for s in np.unique(places)]
        slots[f"cor[{inside}]"] = [("cor", f, b) for b in correlated]
    return slots


def slot_names(labels: Labels) -> dict[Slot, str]:
    """Name in the table of each parameter."""
    names: dict[Slot, str] = {
        ("beta", 0, j): coef_label(coef) for j, coef in enumerate(labels.coefs)
    }
    for f, structure in enumerate(labels.structures):
        for place, name in enumerate(labels.sd_names(f)):
            names["sd", f, place] = name
        for b, part in enumerate(structure.parts):
            if part.n_cors:
                names["cor", f, b] = cor_label(labels, f, b)
    kinds = [("sigma", 0, j) for j in range(len(labels.residual.scales))]
    kinds += [("power", 0, j) for j in range(len(labels.residual.powers))]
    kinds += [("cor_residual", 0, arm) for arm in _arms(labels)]
    names |= dict(zip(kinds, labels.residual.prior_names, strict=True))
    return names if labels.scale_labels is None else names | labels.scale_labels.names


def _arms(labels: Labels) -> range:
    """Sets of correlations of residuals."""
    return range(len(labels.residual.arms) if labels.residual.n_cors else 0)


def match_keys(
    slots: Mapping[str, Any], user: Mapping[str, Any], purpose: str = "give a prior to"
) -> dict[str, Any]:
    """What a user gave under the valid keys; blanks in a key do not matter."""
    squeezed = {_squeeze(key): key for key in slots}
    given: dict[str, Any] = {}
    for key, value in user.items():
        if not isinstance(key, str):
            raise PriorError(f"The name of a parameter is text; got {key!r}.")
        match = key if key in slots else squeezed.get(_squeeze(key))
        if match is None:
            raise PriorError(_unknown_key(key, list(slots), purpose))
        if match in given:
            raise PriorError(f"{match!r} is given twice.")
        given[match] = value
    return given


def _squeeze(key: str) -> str:
    return re.sub(r"\s+", "", key)


def _unknown_key(key: str, valid: list[str], purpose: str) -> str:
    close = get_close_matches(key, valid, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    shown = [k for k in valid if not (k.startswith("beta[") and k[5:-1] in valid)]
    return (
        f"There is no parameter {key!r} to {purpose}.{hint} "
        f"Valid keys: {', '.join(repr(k) for k in sorted(shown))}."
    )


def _scale_prior(prior: Prior, key: str) -> Prior:
    if type(prior) is Flat:
        return HalfFlat()
    if not prior.positive:
        raise PriorError(
            f"The prior {prior} for {key!r} allows negative values. A prior on a standard "
            "deviation must live on the positive half line: use for example "
            "pm.HalfNormal.dist(1), or truncate it at 0 with "
            "pm.Truncated.dist(pm.Normal.dist(1, 2), lower=0)."
        )
    return prior


BEYOND = np.logspace(-6, 8, 29)
"""Distances from a range at which a prior that vanishes outside of it must be zero."""


def _parameter_prior(prior: Prior | LKJ, part: Pattern, key: str) -> Prior:
    """A prior on the correlation parameters of a pattern, within their range."""
    low, high = part.lowest, 1.0
    of = "each partial autocorrelation" if part.n_cors > 1 else "the correlation"
    if type(prior) is Flat:
        return Uniform(low, high)
    if isinstance(prior, LKJ):
        raise PriorError(
            f"{prior} for {key!r} is a prior for correlation matrices without structure, and "
            f"{part.name}() has {part.n_cors} parameter{'s' if part.n_cors > 1 else ''}: give "
            f"{of} a distribution on ({low:.3g}, {high:.3g}), such as "
            f"pm.Uniform.dist({low:.3g}, {high:.3g})."
        )
    outside = np.concatenate([low - BEYOND, high + BEYOND])
    if np.any(prior.logpdf(outside) > -np.inf):
        raise PriorError(
            f"The prior {prior} for {key!r} allows values outside of ({low:.3g}, {high:.3g}), "
            f"where the correlation matrix of {part.name}() is not positive definite. Truncate "
            f"it, as in pm.TruncatedNormal.dist(0, 0.5, lower={low:.6g}, upper={high:g})."
        )
    return prior


def _correlation_prior(prior: Prior | LKJ, given: Any, size: int, key: str) -> LKJ:
    if type(prior) is Flat:
        return LKJ(1.0)
    if not isinstance(prior, LKJ):
        raise PriorError(
            f"The prior {prior} for {key!r} is not one for a correlation matrix: give "
            f"bayeslmm.priors.defaults.LKJ(eta) or pm.LKJCorr.dist(n={size}, eta=2)."
        )
    stated = correlation_size(given)
    if stated is not None and stated != size:
        raise PriorError(
            f"The prior for {key!r} is for {stated} x {stated} matrices, but the random effects "
            f"have {size} correlated coefficients: give pm.LKJCorr.dist(n={size}, eta=...)."
        )
    return prior
