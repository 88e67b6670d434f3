"""Cross-validation of models of data beyond memory: rows are scored batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, override

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import norm

from bayeslmm.checks.integrated import LeaveOut, affordable
from bayeslmm.checks.loo import (
    MOST_RESAMPLED,
    Scores,
    Smoother,
    log_replaced,
    loo_pit_series,
    loo_weights,
    posterior_loo,
    report_poor,
    report_unknown,
    scored_draws,
    thin_to,
)
from bayeslmm.checks.resampled import RESAMPLE_K, Removed, Resampler
from bayeslmm.checks.row_scores import scored_parts
from bayeslmm.data.design import Design
from bayeslmm.data.row_tables import (
    Out,
    checked_path,
    joined_table,
    row_table,
    rows_fit,
    table_of_parts,
    write_revised,
)
from bayeslmm.data.second_pass import SOME_GROUPS
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.executor import Executor, Tasks, require_executor, results
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import SamplingError
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.schema import OBS_DIM

if TYPE_CHECKING:
    from arviz_stats import ELPDData

Array = NDArray[np.float64]
Change = Mapping[str, float]

ELPD, PARETO_K = "elpd_i", "pareto_k"
"""Columns of files of scores."""


def cross_validation(
    model: Model,
    data: xr.DataTree,
    joint: JointDraws,
    by: str | None = None,
    *,
    conditional: bool = False,
    draws: int | None = None,
    executor: Executor | None = None,
    progressbar: bool = False,
    out: Out | None = None,
) -> ELPDData:
    """Cross-validation of a posterior of any data: see :meth:`bayeslmm.Posterior.loo`."""
    again = _by_batches(model.design) and not conditional
    if out is not None and (not again or by is not None):
        raise ValueError(
            "out= is for scores of single rows of data beyond memory; others are in the result."
        )
    if again and by is None:
        return streamed_loo(
            model, data, joint, out, draws, executor=executor, progressbar=progressbar
        )
    return posterior_loo(
        model,
        data,
        joint,
        by,
        conditional=conditional,
        draws=draws,
        executor=executor,
        progressbar=progressbar,
    )


def _by_batches(design: Design) -> bool:
    """Whether rows are read again, and are independent given the random effects."""
    return isinstance(design, SummarisedDesign) and not design.spec.structured


def streamed_loo(
    model: Model,
    data: xr.DataTree,
    joint: JointDraws,
    out: Out | None,
    draws: int | None = None,
    *,
    executor: Executor | None = None,
    progressbar: bool = False,
) -> ELPDData:
    """Scores of single rows, each left out, in one reading: see :meth:`bayeslmm.Posterior.loo`.

    Pointwise values are in the result where the rows are no more than a batch, and in the file
    `out` if it is given.
    """
    require_executor(executor)
    path = None if out is None else checked_path(out)
    joint, log_ratio = scored_draws(data, joint, draws)
    size = affordable(model.design, model.system, joint.size, 1)
    joint, log_ratio = thin_to(joint, log_ratio, size)
    smoother = Smoother(joint, log_ratio)
    totals, worst = _Totals(smoother.good_k), _Worst()

    def summarise(_: Array, scores: LeaveOut) -> dict[str, Array]:
        elpd, k, p, _ = smoother.smooth(scores)
        return {ELPD: elpd, PARETO_K: k, "p": p}

    def parts() -> Generator[tuple[Design, pd.DataFrame]]:
        for part, values in scored_parts(model, joint, summarise):
            worst.add(part, values[PARETO_K], totals.n, values[ELPD])
            totals.add(values)
            yield part, pd.DataFrame(values, index=part.index)[[ELPD, PARETO_K]]

    def revise() -> dict[int, Change]:
        return _rescored(model, joint, worst, totals, executor, progressbar=progressbar)

    table = None
    if path is not None:
        write_revised(path, parts(), revise)
    else:
        table = joined_table(parts(), keep=rows_fit(model.design))
        for row, change in revise().items():
            if table is not None:
                table.iloc[row] = [change[ELPD], change[PARETO_K]]
    report_poor(totals.bad, totals.n, smoother.good_k)
    report_unknown(totals.unknown, totals.n, joint.size)
    return totals.result(joint.size, table)


def loo_pit(
    model: Model,
    data: xr.DataTree,
    joint: JointDraws,
    draws: int | None,
    out: Out | None,
    *,
    progressbar: bool = False,
) -> pd.Series | None:
    """See :meth:`bayeslmm.checks.accessors.PosteriorChecks.loo_pit`."""
    if _by_batches(model.design):
        parts = _pit_parts(model, data, joint, draws)
        table = table_of_parts(model.design, parts, out)
        return None if table is None else table["loo_pit"]
    model = model.gathered("Transforms of rows with correlated residuals", SOME_GROUPS)
    values = loo_pit_series(model, data, joint, draws, progressbar=progressbar)
    if out is None:
        return values
    row_table(model.design, lambda _: values.to_frame(), out)
    return None


def _pit_parts(
    model: Model, data: xr.DataTree, joint: JointDraws, draws: int | None
) -> Callable[[], Iterator[tuple[Design, pd.DataFrame]]]:
    """Leave-one-out probability integral transforms of rows, some at a time."""
    joint, log_ratio = scored_draws(data, joint, draws)
    size = affordable(model.design, model.system, joint.size, 1)
    joint, log_ratio = thin_to(joint, log_ratio, size)
    good_k = Smoother(joint, log_ratio).good_k

    def summarise(y: Array, scores: LeaveOut) -> dict[str, Array]:
        weights, k = loo_weights(scores.log_density, log_ratio)
        assert scores.mean is not None and scores.sd is not None
        below = norm.cdf((y - scores.mean) / scores.sd)
        return {"loo_pit": np.sum(weights * below, axis=0), PARETO_K: k}

    def parts() -> Iterator[tuple[Design, pd.DataFrame]]:
        bad = n = 0
        for part, values in scored_parts(model, joint, summarise, moments=True):
            bad, n = bad + int(np.sum(values[PARETO_K] > good_k)), n + part.n
            yield part, pd.DataFrame({"loo_pit": values["loo_pit"]}, index=part.index)
        report_poor(bad, n, good_k)

    return parts


class _Totals:
    """Sums of scores, merged over batches."""

    def __init__(self, good_k: float) -> None:
        self.good_k = good_k
        self.n = self.bad = self.unknown = 0
        self.mean = self.squares = self.p = 0.0

    def add(self, values: Mapping[str, Array]) -> None:
        """Take in rows."""
        elpd = values[ELPD]
        mean, n = float(np.mean(elpd)), len(elpd)
        gap, both = mean - self.mean, self.n + n
        self.squares += float(np.sum((elpd - mean) ** 2)) + gap**2 * self.n * n / both
        self.mean += gap * n / both
        self.n = both
        self.p += float(np.sum(values["p"]))
        self.bad += int(np.sum(values[PARETO_K] > self.good_k))
        self.unknown += int(np.sum(np.isnan(values[PARETO_K])))

    def replace(self, old: float, new: float, k: float) -> None:
        """Take a score of one row in place of another one, whose Pareto k was k."""
        change = (new - old) / self.n
        self.squares += (new - self.mean) ** 2 - (old - self.mean) ** 2 - self.n * change**2
        self.mean += change
        self.p -= new - old
        self.bad -= int(k > self.good_k)

    def result(self, draws: int, table: pd.DataFrame | None) -> Any:
        """The scores as ArviZ has them."""
        pointwise: dict[str, Any] = {ELPD: None, PARETO_K: None}
        if table is not None:
            labels = np.asarray(table.index, dtype=np.int64)
            pointwise = {
                name: xr.DataArray(table[name].to_numpy(), {OBS_DIM: labels}, [OBS_DIM])
                for name in pointwise
            }
        return StreamedScores(
            elpd=self.n * self.mean,
            se=float(np.sqrt(max(self.squares, 0.0))),
            p=self.p,
            n_samples=draws,
            n_data_points=self.n,
            scale="log",
            warning=self.bad > 0,
            good_k=self.good_k,
            log_weights=None,
            **pointwise,
        ).with_poor(self.bad, self.unknown)


class StreamedScores(Scores):
    """ArviZ's scores of rows that were read batch by batch.

    Attributes
    ----------
    n_poor : int
        Rows with a Pareto k above `good_k`.
    n_unknown : int
        Rows without a Pareto k, for want of draws.
    """

    n_poor: int = 0
    n_unknown: int = 0

    def with_poor(self, poor: int, unknown: int) -> StreamedScores:
        """Itself, with the numbers of rows of large Pareto k and of an unknown one."""
        self.n_poor, self.n_unknown = poor, unknown
        return self

    @property
    @override
    def unknown_k(self) -> bool:
        """Whether no row has a Pareto k."""
        return self.n_unknown == self.n_data_points

    def __str__(self) -> str:
        """Print as ArviZ does, with the number of rows of large Pareto k in place of a table."""
        text, poor = str(super().__str__()), f"{self.n_poor} of {self.n_data_points} rows"
        if self.pareto_k is not None or self.unknown_k:
            return text
        return f"{text}\n{poor} have a Pareto k above {self.good_k:.2f}."

    def __repr__(self) -> str:
        return str(self)


class _Worst:
    """The rows with the largest Pareto k."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, float, Design]] = []

    def add(self, part: Design, k: Array, start: int, elpd: Array) -> None:
        """Take in rows, the first of which has number `start`."""
        poor = np.flatnonzero(k > RESAMPLE_K)
        poor = poor[np.argsort(-k[poor], kind="stable")][:MOST_RESAMPLED]
        own = [
            (start + int(i), float(k[i]), float(elpd[i]), part.take(np.array([i]))) for i in poor
        ]
        both = self.rows + own
        order = np.argsort([-row[1] for row in both], kind="stable")[:MOST_RESAMPLED]
        self.rows = [both[place] for place in order]


def _rescored(
    model: Model,
    joint: JointDraws,
    worst: _Worst,
    totals: _Totals,
    executor: Executor | None,
    *,
    progressbar: bool,
) -> dict[int, Change]:
    """Scores from the evidence without the rows, where importance weights are poor."""
    if not worst.rows:
        return {}
    resampler = Resampler(model, joint, np.random.default_rng(0))
    if not resampler.affordable:
        return {}
    try:
        _ = resampler.log_evidence  # once, for all scores
    except SamplingError:
        return {}
    tasks = Tasks(
        make=_scorer,
        parts=(resampler,),
        items=[(place, row) for place, _, _, row in worst.rows],
        size=len(worst.rows),
        title="Leave-out anew",
        label=lambda number: f"The score of {worst.rows[number][3].index[0]}",
    )
    changes: dict[int, Change] = {}
    with results(tasks, executor, progressbar) as scores:
        for (place, k, old, _), score in zip(worst.rows, scores, strict=True):
            if score is not None:
                changes[place] = {ELPD: score, PARETO_K: 0.0}  # as ArviZ's reloo does
                totals.replace(old, score, k)
    log_replaced(len(changes), totals.n)
    return changes


def _scorer(resampler: Resampler) -> Callable[[tuple[int, Design]], float | None]:
    """Work of resampling: the score of one row, whose random stream is its own."""

    def score(item: tuple[int, Design]) -> float | None:
        place, row = item
        logs = 0.0 if row.weights is None else float(np.sum(np.log(row.weights)))
        return resampler.score(Removed(row, row.n, logs), np.random.default_rng([0, place]))

    return score
