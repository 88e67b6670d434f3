"""Checks of residuals of any data: all rows at once, or batch by batch where they are too many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.checks.resampled import Removed, Resampler
from bayeslmm.checks.residual_checks import (
    CASES,
    EFFECT_CHECKS,
    FEWEST_CASES,
    FEWEST_DRAWS,
    LARGEST_EFFECT,
    LARGEST_RESIDUAL,
    NAMED,
    OUTLYING,
    RESAMPLED,
    Extreme,
    Outlier,
    Pair,
    ResidualChecks,
    case_of,
    check_estimate,
    check_posterior,
    checks_frame,
    extreme,
    left_out,
    record_of,
    row_label,
    shift_of,
)
from bayeslmm.checks.residuals import thinned
from bayeslmm.checks.row_forms import RowSystem, leverages, row_system
from bayeslmm.checks.streamed_residuals import (
    Farthest,
    Point,
    compared_points,
    random_effects,
)
from bayeslmm.data.design import Design
from bayeslmm.data.row_tables import streams
from bayeslmm.data.seeds import seeded
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.crossprod import Basis, WorkingProducts
from bayeslmm.likelihood.log_posterior import beta_prior
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.sampling.joint_draws import JointDraws, point_draws
from bayeslmm.summaries.parameters import whole_number

Array = NDArray[np.float64]
Seed = int | np.random.Generator | None

MOST_POINTS = 20
"""Draws of covariance parameters at which responses are simulated, some at each."""

ENTRIES = 1 << 26
"""Random effects of all replicates that are held at once: 512 MB, twice."""

WORK = 1 << 27
"""Residuals of all replicates: minutes. Responses are fewer where that would be more."""


def residual_checks_of_estimate(
    design: Design, fit: Fit, draws: int, random_seed: Seed
) -> ResidualChecks:
    """Check an estimate at its covariance parameters; of many rows in two readings."""
    if not streams(design) or not isinstance(design, SummarisedDesign):
        return check_estimate(design, fit, draws, random_seed)
    joint = point_draws(fit, ())
    system = row_system(design, fit.plan, fit.prior, given_beta=fit.given_beta)
    each = _replicates(design, draws, 1)
    points, farthest = compared_points(design, system, joint, each, _seed(random_seed))
    row, failure, test = _extreme(farthest), "", None
    if row is not None:
        try:
            products = shifted(design.products, farthest.rows[0][-1], design.n)
            wider = SummarisedDesign(design.spec, design.summary, products)
            test = shift_of(marginal_system(wider), row.count)
        except DataError as error:
            failure = f"The {LARGEST_RESIDUAL} was not tested: {error}"
    return _result(design, system, points, farthest, row, test, each, failure)


def residual_checks_of_posterior(
    model: Model, joint: JointDraws, draws: int, random_seed: Seed
) -> ResidualChecks:
    """Check a posterior on some of its draws; of many rows in two readings."""
    design = model.design
    if not streams(design) or not isinstance(design, SummarisedDesign):
        return check_posterior(model, joint, draws, random_seed)
    given = model.priors.beta_sampled
    prior = None if given else beta_prior(model.priors)
    whole_number(draws, "draws", FEWEST_DRAWS, why=", for p-values")
    few = thinned(design, model.system, joint.thin(min(draws, MOST_POINTS)))
    system = row_system(design, model.system, prior, given_beta=given)
    each = _replicates(design, min(draws, joint.size), few.size)
    seed = _seed(random_seed)
    points, farthest = compared_points(design, system, few, each, seed)
    row, test = _extreme(farthest), None
    if row is not None:
        rows, log_sd = farthest.rows[0][-1], farthest.rows[0][2]
        rng = np.random.default_rng(seed)
        test = left_out(row, log_sd, lambda: _without(model, joint, system, rows, rng))
    return _result(design, system, points, farthest, row, test, each, "")


def _replicates(design: Design, draws: int, points: int) -> int:
    """Responses that are simulated at each of the points: fewer where effects or rows are many."""
    whole_number(draws, "draws", FEWEST_DRAWS, why=", for p-values")
    effects = sum(factor.n_levels * factor.n_coefs for factor in design.random)
    affordable = max(FEWEST_DRAWS, min(ENTRIES // max(1, effects), WORK // design.n))
    return -(-min(draws, affordable) // points)


def _seed(random_seed: Seed) -> int:
    return int(seeded(random_seed).integers(2**63))


def _extreme(farthest: Farthest) -> Extreme | None:
    """The row that deviates most, and how many others are far out."""
    if not farthest.rows:
        return None
    limit = stats.norm.isf(0.5 * NAMED / farthest.number)
    far = [place for place, row in enumerate(farthest.rows) if place and row[0] > limit]
    return Extreme(
        at=0, count=farthest.number, far=tuple(far), values=np.asarray(farthest.rows[0][1])
    )


def shifted(products: WorkingProducts, row: Design, n: int) -> WorkingProducts:
    """Cross-products with a further fixed effect, the shift of one row."""
    basis, (root,) = products.basis, np.sqrt(row.row_weights)
    length, p = np.sqrt(n), products.n_fixed
    x = root * (row.X[0] @ basis.fixed)
    y = root * float(row.y[0] - row.offset[0] - row.X[0] @ basis.shift)
    fixed = np.insert(np.insert(products.fixed, p, 0.0, axis=0), p, 0.0, axis=1)
    fixed[p] = fixed[:, p] = length * np.concatenate([x, [length], [y]])
    mixed = []
    for own, factor, columns in zip(products.mixed, row.random, basis.random, strict=True):
        wider = np.insert(own, p, 0.0, axis=2)
        wider[factor.codes[0], :, p] = length * root * (factor.Z[0] @ columns)
        mixed.append(wider)
    wide = np.zeros((p + 1, p + 1))
    wide[:p, :p], wide[p, p] = basis.fixed, length / root
    shift = np.append(basis.shift, 0.0)
    changed = Basis(fixed=wide, shift=shift, random=basis.random, levels=basis.levels)
    return replace(products, fixed=fixed, mixed=tuple(mixed), basis=changed)


def _without(
    model: Model, joint: JointDraws, system: RowSystem, row: Design, rng: np.random.Generator
) -> Array | None:
    """Deviations of a row at draws from the posterior without it."""
    resampler = Resampler(model, joint, rng)
    logs = 0.0 if row.weights is None else float(np.sum(np.log(row.weights)))
    points = resampler.draws(Removed(row, 1, logs), RESAMPLED) if resampler.affordable else None
    if points is None:
        return None
    beta = points.beta if system.given_beta else np.zeros((RESAMPLED, model.design.p))
    fresh = replace(joint, shape=(1, RESAMPLED), beta=beta, points=points)
    own = system.with_rows(row)
    found = []
    for draws in own.batches(RESAMPLED):
        for _, share, residual in leverages(own, fresh, draws):
            left = own.weights[:, None] * (1.0 - own.weights[:, None] * share)
            found.append(own.weights * residual[0] / (fresh.sigma[draws] * np.sqrt(left[0])))
    return np.concatenate(found)


def _result(
    design: SummarisedDesign,
    system: RowSystem,
    points: Sequence[Point],
    farthest: Farthest,
    row: Extreme | None,
    test: Outlier | None,
    replicates: int,
    failure: str,
) -> ResidualChecks:
    pairs: dict[str, list[Pair]] = {}
    for point in points:
        for name, values in _row_statistics(design, point).items():
            pairs.setdefault(name, []).append((values[:1], values[1:]))
    largest = {}
    if row is not None and test is not None:
        labels = [row_label(farthest.rows[place][-1], 0) for place in (0, *row.far)]
        largest[LARGEST_RESIDUAL] = case_of(labels, test.deviation)
    for f, factor in enumerate(design.random):
        effects = [random_effects(system, point, f) for point in points]
        for c, coef in enumerate(factor.coefs):
            found = extreme(np.stack([values[0, :, c] for values in effects]))
            if found is None or found.count < FEWEST_CASES:
                continue
            names = [f"{factor.name} {factor.levels[i]}" for i in (found.at, *found.far)]
            label = f"{LARGEST_EFFECT}[{factor.name}, {coef}]"
            largest[label] = case_of(names, float(found.values.mean()))
            for values in effects:
                known = np.isfinite(values[0, :, c])
                for name, statistic in EFFECT_CHECKS.items():
                    each = statistic(values[:, known, c])
                    own = pairs.setdefault(f"{name}[{factor.name}, {coef}]", [])
                    own.append((each[:1], each[1:]))
    records = {name: record_of(own) for name, own in pairs.items()}
    if test is not None:
        records[LARGEST_RESIDUAL] = {
            "observed": abs(test.deviation),
            "expected": test.typical,
            "p_value": test.p_value,
        }
    return ResidualChecks(
        table=checks_frame(records, ["observed", "expected", "p_value"]),
        largest=checks_frame(largest, CASES),
        residuals=farthest.sampled()[1],
        draws=replicates * len(points),
        failures=(failure,) if failure else (),
        rows=design.n,
    )


def _row_statistics(design: SummarisedDesign, point: Point) -> dict[str, Array]:
    """Statistics (1 + R,) of the residuals by check, of the data first."""
    counts = point.counts
    if counts[0].n < FEWEST_CASES:
        return {}
    found = {
        "normality of residuals": [own.misfit() for own in counts],
        "outliers": [own.outliers(OUTLYING) for own in counts],
        "spread against fitted": [own.spread_against_fitted() for own in counts],
    }
    for f, factor in enumerate(design.random):
        if 1 < np.count_nonzero(point.present[f]) < counts[0].n:
            found[f"spread across {factor.name}"] = [
                own.spread_across(f, point.present[f]) for own in counts
            ]
    return {name: np.array(values) for name, values in found.items()}
