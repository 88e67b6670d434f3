"""A model in words: what was fitted to which rows."""

from __future__ import annotations

from collections.abc import Sequence

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.priors.lkj import LKJ
from bayeslmm.priors.record import Priors
from bayeslmm.summaries.text import MOST, counted, listed

INTERCEPT = "Intercept"


def model_sentences(design: Design) -> list[str]:
    """Response, rows, fixed effects, random effects, residuals, what was dropped."""
    rows = counted(design.n, "observation")
    sentences = [
        f"A linear mixed model of {design.response} was fitted to {rows} "
        f"(formula: {' '.join(design.formula.source.split())})."
    ]
    sentences += dropped_sentences(design)
    sentences.append(_fixed_sentence(design))
    if design.random:
        parts = [_random_phrase(factor) for factor in design.random]
        sentences.append(f"Random effects were {_joined(parts)}.")
        sentences.append("Random effects were normally distributed with mean zero.")
    sentences.append(_residual_sentence(design))
    return sentences


def dropped_sentences(design: Design) -> list[str]:
    """Rows and columns that were left out."""
    sentences = []
    if count := len(design.dropped):
        total = count + design.n
        rows = counted(count, "row")
        sentences.append(
            f"{rows} of {total:,} {'was' if count == 1 else 'were'} left out because a variable "
            "of the model is missing there."
        )
    if design.aliased:
        columns = "column" if len(design.aliased) == 1 else "columns"
        sentences.append(
            f"The fixed-effects {columns} {listed(design.aliased)} "
            f"{'was' if len(design.aliased) == 1 else 'were'} left out as linear combinations of "
            "the others."
        )
    return sentences


def _fixed_sentence(design: Design) -> str:
    if not design.p:
        text = "There were no fixed effects"
    else:
        names = ["the intercept" if name == INTERCEPT else name for name in design.coefs]
        verb = "The fixed effect was" if design.p == 1 else "Fixed effects were"
        text = f"{verb} {listed(names)}"
        if INTERCEPT not in design.coefs:
            text += ", without an intercept"
    if design.formula.offsets:
        text += f"; the offset {' + '.join(design.formula.offsets)} entered with coefficient one"
    return f"{text}."


def _random_phrase(factor: RandomFactor) -> str:
    slopes = [name for name in factor.coefs if name != INTERCEPT]
    parts = ["intercepts"] if INTERCEPT in factor.coefs else []
    parts += [f"coefficients of {listed(slopes)}"] if slopes else []
    levels = counted(factor.n_levels, "level")
    return f"{' and '.join(parts)} by {factor.name} ({levels}){_structure(factor)}"


def _structure(factor: RandomFactor) -> str:
    """Which coefficients of a grouping factor are correlated."""
    if factor.n_coefs == 1:
        return ""
    if len(factor.blocks) == 1:
        return ", correlated with each other"
    correlated = [block for block in factor.blocks if len(block) > 1]
    if not correlated:
        return ", independent of each other"
    blocks = [f"{{{', '.join(factor.coefs[i] for i in block)}}}" for block in correlated]
    return f", correlated within {' and within '.join(blocks)} and independent otherwise"


def _residual_sentence(design: Design) -> str:
    if design.weights is None:
        return "Residuals were independent and normal with one standard deviation."
    source = f" {design.recipe.weights}" if design.recipe.weights else ""
    return (
        "Residuals were independent and normal, with variance sigma squared over the precision "
        f"weight{source} of the row."
    )


def wald_scales(design: Design) -> str:
    """Scales on which intervals of covariance parameters are symmetric."""
    sds = "standard deviations on the logarithmic scale"
    if all(len(block) == 1 for factor in design.random for block in factor.blocks):
        return sds
    return f"{sds}, correlations on the inverse hyperbolic tangent scale"


def _joined(parts: Sequence[str]) -> str:
    """Phrases with commas inside, as a list."""
    return parts[0] if len(parts) == 1 else f"{'; '.join(parts[:-1])}; and {parts[-1]}"


def prior_sentences(priors: Priors) -> list[str]:
    """Priors with their values: the defaults, those given, flat ones."""
    records = priors.records()
    by_source: dict[str, list[str]] = {}
    for key, record in records.items():
        by_source.setdefault(priors.sources[key], []).append(f"{key} ~ {record}")
    sentences = []
    if "flat" in by_source:
        text = "Priors were flat (improper): uniform on the fixed effects, the standard deviations"
        text += " and sigma"
        if any(isinstance(record, LKJ) for record in records.values()):
            text += "; LKJ(1), which is uniform over correlation matrices, on the correlations"
        sentences.append(f"{text}.")
    if "user" in by_source:
        sentences.append(f"Priors chosen for this analysis: {_shortened(by_source['user'])}.")
    if "default" in by_source:
        which = "Other priors" if "user" in by_source else "Priors"
        sentences.append(
            f"{which} were the weakly informative defaults of bayeslmm, scaled by the standard "
            f"deviations of response and covariates: {_shortened(by_source['default'])}."
        )
    centred = INTERCEPT in priors.coefs and len(priors.coefs) > 1
    if centred and priors.sources.get(INTERCEPT) in ("default", "user"):
        sentences.append(
            "The prior of the intercept is that of the linear predictor at the means of the "
            "covariates."
        )
    return sentences


def _shortened(phrases: Sequence[str]) -> str:
    more = len(phrases) - MOST
    return "; ".join(phrases[:MOST]) + (f"; and {more} more" if more > 0 else "")
