"""The result of ``model.fit()``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload, override

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bayeslmm.checks.accessors import PosteriorChecks
from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import require_random
from bayeslmm.data.seeds import seeded, seeds_of
from bayeslmm.estimation import effects as random_effects
from bayeslmm.exceptions import check_choice
from bayeslmm.fits.base import NO_EFFECTS
from bayeslmm.fits.draws import PosteriorDraws
from bayeslmm.fits.predictions import Names, Seed
from bayeslmm.plots.accessors import PosteriorPlots
from bayeslmm.prediction import predict
from bayeslmm.prediction.past import ResidualsOf
from bayeslmm.prediction.predict import Kind
from bayeslmm.prediction.rows import Target, Terms
from bayeslmm.sampling.joint_draws import JointDraws, points_of
from bayeslmm.summaries import posterior_tables, text
from bayeslmm.summaries.level_tables import posterior_level_tables
from bayeslmm.summaries.nlme import nlme_quantity
from bayeslmm.summaries.parameters import Effects, VarcorrStyle
from bayeslmm.summaries.variance_explained import (
    R2Method,
    icc_quantity,
    posterior_partition,
    posterior_table,
    r2_quantity,
)

if TYPE_CHECKING:
    import xarray as xr
    from arviz_stats import ELPDData

    from bayeslmm.checks.kfold import Joint
    from bayeslmm.effects.heterogeneity import Heterogeneity
    from bayeslmm.effects.hypothesis import Hypotheses
    from bayeslmm.effects.random_labels import Scope
    from bayeslmm.effects.sources import Source
    from bayeslmm.estimation.executor import Executor
    from bayeslmm.estimation.inference import DfMethod
    from bayeslmm.planning.truth import Truth
    from bayeslmm.report.broom import Column, Incomplete
    from bayeslmm.report.findings import Findings

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Posterior(PosteriorDraws):
    """Posterior draws of a linear mixed model.

    Made by :meth:`LMM.fit`. Point summaries (`beta`, `sds`, `sigma`, ...) are posterior means;
    everything else is in `data` for ArviZ. Pictures are in `plot` (``post.plot.shrinkage()``),
    checks in `check` (``post.check.influence()``).

    Attributes
    ----------
    model : Model
        Design and priors, shared by all fits of the model.
    data : xarray.DataTree
        Draws in the ArviZ schema: groups posterior, sample_stats, observed_data, constant_data,
        random_effects (summaries of random effects that are too many to store) and those added on
        request (see :meth:`to_arviz`). Variables of posterior, per grouping factor with key g, are
        ``beta``, ``u_g``, ``sd_g``, ``corr_g`` (correlations by pair of coefficients) and
        ``sigma``; correlation matrices ``cor_g`` are coordinates. Its attributes name the method
        and, where they apply, why another one was fallen back to and the error of the surrogate.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
    >>> post = model.fit(method="laplace", random_seed=1)
    >>> sorted(post.data["posterior"].data_vars)
    ['beta', 'sd_Batch', 'sigma', 'u_Batch']
    """

    @property
    def plot(self) -> PosteriorPlots:
        """Pictures: ``plot.caterpillar()``, ``shrinkage``, ``fitted``, ``predictive``, ..."""
        return PosteriorPlots(self)

    @property
    def check(self) -> PosteriorChecks:
        """Checks: ``check.influence()``, ``residuals``, ``sensitivity``, ``predictive``, ..."""
        return PosteriorChecks(self)

    # --- values -----------------------------------------------------------------------

    @property
    @override
    def _beta(self) -> Array:
        return posterior_tables.beta_mean(self._draws)

    @cached_property
    @override
    def _u(self) -> list[Array]:
        return posterior_tables.mean_arrays(self.data, self.design)

    @cached_property
    @override
    def _covariances(self) -> list[Array]:
        draws = posterior_tables.covariance_draws(self._draws, self.design)
        return [draw.mean(axis=0) for draw in draws]

    @property
    @override
    def _points(self) -> Points:
        return points_of(self.design, self._draws)

    @property
    @override
    def method(self) -> str:
        return str(self.data.attrs["method"])

    @property
    def random_seeds(self) -> tuple[int | tuple[int, ...] | None, ...]:
        """Seeds of the runs that made the draws: that of `fit`, then of each `extend`.

        A run that was given none has the number that it took from the operating system. The same
        call with ``random_seed=`` that number gives the same draws again. None stands for a
        Generator, whose state is not kept, and for draws of a version that kept no seeds.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(draws=50)
        >>> again = model.fit(draws=50, random_seed=post.random_seeds[0])
        >>> post.data["posterior"].equals(again.data["posterior"])
        True
        """
        return seeds_of(self.data.attrs)

    @property
    @override
    def notes(self) -> tuple[str, ...]:
        stored = posterior_tables.has_draws(self.data, self.design)
        sampled = self.priors.beta_sampled
        about = text.posterior_notes(self.data.attrs, beta_sampled=sampled, has_effects=stored)
        return (*text.design_notes(self.design), *about, *self.diagnostics.messages())

    @property
    @override
    def sds(self) -> dict[str, pd.Series]:
        return dict(posterior_tables.sds_mean(self._draws, self.design))

    @property
    @override
    def corrs(self) -> dict[str, pd.DataFrame]:
        return posterior_tables.correlations_mean(self._draws, self.design)

    # --- tables -----------------------------------------------------------------------

    @override
    def summary(self, prob: float | None = None, *, direction: bool = False) -> pd.DataFrame:
        table = posterior_tables.summary_table(self._draws, self.design, prob)
        return posterior_tables.with_direction(table, self._draws, self.design, direction)

    @override
    def fixef(self, prob: float | None = None) -> pd.DataFrame:
        return posterior_tables.fixed_table(self._draws, self.design, prob)

    @override
    def varcorr(
        self, prob: float | None = None, *, style: VarcorrStyle = "default"
    ) -> pd.DataFrame:
        check_choice(style, get_args(VarcorrStyle), "style")
        if style == "nlme":
            return posterior_table(nlme_quantity(self.design), self._joint, prob)
        return posterior_tables.variance_table(self._draws, self.design, self._covariances, prob)

    @override
    def _level_tables(
        self, prob: float | None, level: float | None, *, with_fixed: bool
    ) -> dict[str, pd.DataFrame]:
        if level is not None:
            raise ValueError(
                f"level={level!r} is of an estimate: a posterior's intervals have prob=."
            )
        return posterior_level_tables(self.design, self._joint, prob, with_fixed=with_fixed)

    @override
    def ranef_sd(self) -> dict[str, pd.DataFrame]:
        require_random(self.design, NO_EFFECTS)
        sds = posterior_tables.sd_arrays(self.data, self.design)
        return random_effects.effect_frames(self.design, sds)

    @override
    def tidy(
        self,
        effects: Effects | Sequence[Effects] = ("fixed", "ran_pars"),
        prob: float | None = None,
    ) -> pd.DataFrame:
        return posterior_tables.tidy_table(self.data, self.design, effects, prob)

    @override
    def icc(self, prob: float | None = None, *, at: Any = None) -> pd.DataFrame:
        return posterior_table(icc_quantity(self.design, at), self._joint, prob)

    @override
    def r2(self, method: R2Method = "nakagawa", prob: float | None = None) -> pd.DataFrame:
        return posterior_table(r2_quantity(self.design, method), self._joint, prob)

    @override
    def variance_partition(self, prob: float | None = None) -> pd.DataFrame:
        return posterior_partition(self.design, self._joint, prob)

    # --- predictions ------------------------------------------------------------------

    @overload
    def predict(
        self,
        new: Any = None,
        *,
        target: Target = "conditional",
        kind: Kind = "epred",
        terms: Terms | None = None,
        observed: Any = None,
        weights: Any = None,
        residuals: ResidualsOf | None = None,
        draws: int | None = None,
        summary: Literal[True] = True,
        prob: float | None = None,
        random_seed: Seed = None,
        out: None = None,
    ) -> pd.DataFrame: ...

    @overload
    def predict(
        self,
        new: Any = None,
        *,
        target: Target = "conditional",
        kind: Kind = "epred",
        terms: Terms | None = None,
        observed: Any = None,
        weights: Any = None,
        residuals: ResidualsOf | None = None,
        draws: int | None = None,
        summary: Literal[False],
        prob: float | None = None,
        random_seed: Seed = None,
        out: None = None,
    ) -> xr.DataTree: ...

    @overload
    def predict(
        self,
        new: Any = None,
        *,
        target: Target = "conditional",
        kind: Kind = "epred",
        terms: Terms | None = None,
        observed: Any = None,
        weights: Any = None,
        residuals: ResidualsOf | None = None,
        draws: int | None = None,
        summary: bool = True,
        prob: float | None = None,
        random_seed: Seed = None,
        out: str | PathLike[str],
    ) -> None: ...

    @override
    def predict(
        self,
        new: Any = None,
        *,
        target: Target = "conditional",
        kind: Kind = "epred",
        terms: Terms | None = None,
        observed: Any = None,
        weights: Any = None,
        residuals: ResidualsOf | None = None,
        draws: int | None = None,
        summary: bool = True,
        prob: float | None = None,
        random_seed: Seed = None,
        out: str | PathLike[str] | None = None,
    ) -> pd.DataFrame | xr.DataTree | None:
        from bayeslmm.prediction.in_batches import predict_to_file, predictions_of

        options = predict.options_of(target, kind, terms, observed, weights, residuals)
        rng = seeded(random_seed)

        def table(rows: Any, *, summary: bool = True) -> Any:
            return predict.posterior_predictions(
                self.design, self._joint, rows, options, draws, prob, rng, summary=summary
            )

        source = predictions_of(new, out)
        if source is None or out is None:
            return table(new, summary=summary)
        if not summary:
            raise ValueError("out= is for summaries of predictions: leave summary=False out.")
        predict_to_file(self.design, source, out, weights, draws or self._joint.size, table)
        return None

    @override
    def _simulation_draws(self, n: Any, rng: np.random.Generator) -> JointDraws:
        return predict.sampled(self._joint, n, rng)

    @property
    @override
    def _truth(self) -> Truth:
        from bayeslmm.planning.truth import truth_of_draws

        return truth_of_draws(self._joint)

    # --- effects ----------------------------------------------------------------------

    @override
    def _source_by(self, df: DfMethod | None) -> Source:
        from bayeslmm.effects.sources import refuse_df, source_of_draws

        refuse_df(df)
        return source_of_draws(self.design, self._joint)

    @override
    def _row_draws(self, target: str) -> JointDraws | None:
        from bayeslmm.effects.averages import row_draws

        return row_draws(self._joint, target)

    @override
    def heterogeneity(
        self, prob: float | None = None, *, at: Any = None, random_seed: Seed = None
    ) -> Heterogeneity:
        from bayeslmm.effects.heterogeneity import posterior_heterogeneity

        return posterior_heterogeneity(
            self.model, self._joint, prob=prob, at=at, random_seed=random_seed
        )

    @override
    def hypothesis(
        self,
        expressions: Names,
        *,
        rope: float | Sequence[float] | None = None,
        scope: Scope = "standard",
        group: str | None = None,
    ) -> Hypotheses:
        from bayeslmm.effects.hypothesis import posterior_hypotheses

        return posterior_hypotheses(self.model, self._joint, expressions, rope, scope, group)

    # --- criticism --------------------------------------------------------------------

    def loo(
        self,
        by: str | None = None,
        *,
        conditional: bool = False,
        draws: int | None = None,
        executor: Executor | None = None,
        progressbar: bool = True,
        out: str | PathLike[str] | None = None,
    ) -> ELPDData:
        """Leave-one-out or leave-one-group-out cross-validation, without refits.

        Given the covariance parameters, the density of a row (or of all rows of a level) given all
        other rows is normal in closed form, with random and fixed effects integrated out. So
        importance weights are needed for the covariance parameters only, which seldom depend much
        on a row or a level. Where they do (Pareto k above 0.3), the posterior of the covariance
        parameters without these rows is sampled instead, and `pareto_k` is 0. Draws of a Laplace
        approximation are weighted so that the scores are those of the posterior it approximates.

        Parameters
        ----------
        by : str, optional
            Grouping factor or variable of the formula (``"batch:cask"`` for the cells of two)
            whose levels are left out one at a time, which tells how well new levels are
            predicted; single rows by default, which tells how well further rows of the same
            levels are.
        conditional : bool
            Score rows given draws of the random effects, as ``arviz.loo`` does with the group
            log_likelihood. Each draw of a level's effects has seen the row that is left out, so
            the weights are often unreliable.
        draws : int, optional
            Use at most so many draws; by default all that memory and time allow.
        executor : concurrent.futures.Executor or the like, optional
            Where posteriors without some rows are sampled, as in
            :meth:`bayeslmm.LMM.check_calibration`.
        progressbar : bool
            Whether to show one, on a terminal.
        out : str or path, optional
            Of data beyond memory: a Parquet file for the pointwise values `elpd_i` and `pareto_k`
            of rows, beside their numbers and variables, as in :meth:`fitted`.

        Returns
        -------
        arviz_stats.ELPDData
            Expected log predictive density `elpd`, its standard error `se`, effective number of
            parameters `p` (log density in the sample less `elpd`), pointwise `elpd_i` and
            `pareto_k`; ``arviz.compare`` takes it. Of more than about a million rows beyond memory
            there are no pointwise values but in `out`, and `n_poor` counts the unreliable ones.

        Raises
        ------
        DataError
            If the model has no grouping factor or variable `by`, or rows beyond memory cannot be
            read again.
        ValueError
            If `out` is given for data in memory, or `by` or `draws` is given together with
            `conditional`, or `draws` is no positive whole number.
        SamplingError
            If flat priors leave the fixed effects undetermined without some rows, or draws of the
            random effects, which `conditional` needs, are not stored.

        References
        ----------
        Vehtari, Gelman, Gabry (2017), doi:10.1007/s11222-016-9696-4.
        Vehtari, Mononen, Tolvanen, Sivula, Winther (2016), JMLR 17(103).
        Merkle, Furr, Rabe-Hesketh (2019), doi:10.1007/s11336-019-09679-0, on conditional and
        marginal scores.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> post = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).fit(random_seed=1)
        >>> rows, subjects = post.loo(), post.loo(by="Subject")
        >>> int(rows.n_data_points), int(subjects.n_data_points)
        (180, 18)
        >>> bool(max(rows.pareto_k.max(), subjects.pareto_k.max()) < 0.7)
        True
        """
        from bayeslmm.checks.streamed_loo import cross_validation

        return cross_validation(
            self.model,
            self.data,
            self._joint,
            by,
            conditional=conditional,
            draws=draws,
            executor=executor,
            progressbar=progressbar,
            out=out,
        )

    def kfold(
        self,
        K: int | None = 10,
        by: str | None = None,
        *,
        stratify: str | None = None,
        folds: ArrayLike | None = None,
        joint: Joint = "obs",
        draws: int | None = None,
        random_seed: Seed = None,
        executor: Executor | None = None,
        progressbar: bool = True,
    ) -> ELPDData:
        """K-fold cross-validation, by a refit without each fold.

        A refit samples the covariance parameters given the other rows, under the same priors; the
        rows of the fold are then scored in closed form, with the fixed effects and the random
        effects, also those of levels that are new to the refit, integrated out.

        Parameters
        ----------
        K : int or None
            Number of folds; None for one per level of `by`, or per row.
        by : str, optional
            Grouping factor or variable of the formula whose levels stay whole: how well new levels
            are predicted. Without it rows are divided by chance.
        stratify : str, optional
            Grouping factor or variable whose levels are divided evenly among the folds.
        folds : array-like, optional
            The fold of each row, in place of those made here; `K` then does not count.
        joint : {"obs", "group", "fold"}
            What has one score: a row given the rows of the other folds; all rows of a level of `by`
            together; or all rows of a fold together.
        draws : int, optional
            Draws of the covariance parameters that the scores of a fold are averaged over: 1,000 by
            default for rows and 4,000 for several together, 400 where residuals have a structure;
            fewer where many rows make them dear.
        random_seed : int or numpy.random.Generator, optional
            Seed of folds and refits. The same seed makes the same folds for all models of the same
            rows, which is what comparing them needs.
        executor : concurrent.futures.Executor or the like, optional
            Where refits run, as in :meth:`bayeslmm.LMM.check_calibration`.
        progressbar : bool
            Whether to show one.

        Returns
        -------
        arviz_stats.ELPDData
            Expected log predictive density `elpd`, its standard error `se`, effective number of
            parameters `p`, pointwise `elpd_i`, and `folds`, a series with the fold of each row;
            :func:`bayeslmm.compare` takes several.

        Raises
        ------
        DataError
            If there is no such grouping factor or variable, the random effects cannot be
            integrated out, or rows beyond memory cannot be held.
        ValueError
            If there are fewer rows or levels than folds, or options contradict each other.
        SamplingError
            If flat priors leave the fixed effects undetermined without a fold, or a refit fails.

        Notes
        -----
        With ``joint="obs"`` the scores are comparable with those of :meth:`loo`; with a fold per
        level and ``joint="group"`` they are those of ``loo(by=)``, from refits. Priors that scale
        with the data are not made anew: they are those of the model of all rows.

        References
        ----------
        R's ``brms::kfold``; ``loo::kfold_split_random``, ``kfold_split_stratified``,
        ``kfold_split_grouped``; Vehtari, Gelman, Gabry (2017), doi:10.1007/s11222-016-9696-4.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> post = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).fit(random_seed=1)
        >>> scores = post.kfold(3, by="Subject", random_seed=1, progressbar=False)
        >>> scores.folds.value_counts().tolist()
        [60, 60, 60]
        """
        from bayeslmm.checks.kfold import posterior_kfold

        return posterior_kfold(
            self.model,
            self.data,
            self._joint,
            K,
            by,
            stratify=stratify,
            folds=folds,
            joint=joint,
            draws=draws,
            random_seed=random_seed,
            executor=executor,
            progressbar=progressbar,
        )

    def compare_reml(
        self, reml: Any, *, prob: float | None = None, names: Mapping[str, str] | None = None
    ) -> pd.DataFrame:
        """Put the posterior beside an estimate: see :func:`bayeslmm.compare_reml`.

        Parameters
        ----------
        reml, prob, names
            As of :func:`bayeslmm.compare_reml`.

        Returns
        -------
        pandas.DataFrame
            A row per parameter.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(method="laplace", random_seed=1)
        >>> post.compare_reml(model.reml()).shape
        (3, 12)
        """
        from bayeslmm.comparison.reml import compare_reml

        return compare_reml(self, reml, prob=prob, names=names)

    def findings(
        self, topics: str | Sequence[str] | None = None, *, random_seed: int | None = 0
    ) -> Findings:
        """Run the checks and say what each found: alarms, notes, nothing, or not run.

        Parameters
        ----------
        topics : str or sequence of str, optional
            Of "convergence", "residuals" (``check.residuals()``), "influence"
            (``check.influence()`` of rows and of the levels of each grouping factor), "sensitivity"
            (``check.sensitivity()``, ``check.contraction()`` and :func:`bayeslmm.compare_reml`),
            "singularity" (``check.singularity()``) and "loo" (:meth:`loo` of rows). By default all,
            but with more than 5,000 rows neither residuals nor influence nor loo.
        random_seed : int, optional
            Seed of the checks that draw.

        Returns
        -------
        Findings
            ``alarms`` and ``not_run`` are tuples of topics, ``table`` has a row per topic, and
            ``findings["loo"]`` one topic's severity, verdict and details; prints alarms first.

        Raises
        ------
        ValueError
            If there is no such topic.

        Notes
        -----
        An alarm is what a reader must know before using a number; a note is what a right model
        shows now and then. Of several residual checks the smallest p-value, times their number,
        has to be below 0.05 for an alarm; shifts of posterior means are compared with the largest
        that as many cases of a right model explain. A topic that cannot be judged, such as the
        sensitivity to flat priors, was not run, and its verdict says why.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> post = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).fit(random_seed=1)
        >>> post.findings(["convergence", "residuals", "singularity"]).alarms
        ('residuals',)
        """
        from bayeslmm.report.findings import find

        return find(self, topics, random_seed=random_seed)

    # --- papers and prints ------------------------------------------------------------

    @override
    def _column(self, level: float) -> Column:
        from bayeslmm.report.broom import posterior_column

        return posterior_column(self.data, self.design, self.priors, self._joint, level)

    @override
    def glance(self) -> pd.DataFrame:
        from bayeslmm.report.broom import glance_posterior

        return glance_posterior(self.data, self.design, self.priors, self.diagnostics)

    @overload
    def augment(
        self,
        data: Any = None,
        *,
        incomplete: Incomplete = "omit",
        prob: float | None = None,
        out: None = None,
    ) -> pd.DataFrame: ...

    @overload
    def augment(
        self,
        data: Any = None,
        *,
        incomplete: Incomplete = "omit",
        prob: float | None = None,
        out: str | PathLike[str],
    ) -> None: ...

    @override
    def augment(
        self,
        data: Any = None,
        *,
        incomplete: Incomplete = "omit",
        prob: float | None = None,
        out: str | PathLike[str] | None = None,
    ) -> pd.DataFrame | None:
        from bayeslmm.report.broom import augment, posterior_values

        prob, kind = posterior_tables.interval_defaults(prob)
        return augment(
            self.design,
            data,
            incomplete,
            lambda rows: posterior_values(rows, self._beta, self._u, self._joint, prob, kind),
            out,
        )

    @override
    def methods_paragraph(
        self, *, references: bool = False, findings: Findings | None = None
    ) -> str:
        from bayeslmm.report.methods import posterior_paragraph

        return posterior_paragraph(
            self.data,
            self.design,
            self.priors,
            self.diagnostics,
            () if findings is None else findings.sentences(),
            references=references,
        )

    def report(
        self,
        path: str | Path,
        *,
        reml: Any = None,
        findings: Findings | None = None,
        title: str | None = None,
        prob: float | None = None,
        random_seed: int = 0,
        overwrite: bool = False,
    ) -> Path:
        """Write a report of the analysis: one HTML page that needs nothing else.

        What the checks found comes first, with those that were not run; then notes, model and
        data, parameters, priors, diagnostics, the posterior beside REML, parts of the variance,
        random effects, fitted values, predictive checks, and a methods paragraph. Pictures are in
        the file itself (Matplotlib draws them). A part that does not apply is replaced by a
        sentence that says why.

        Parameters
        ----------
        path : str or path
            File to write, ending in ``.html``.
        reml : Estimate, statsmodels MixedLMResults, DataFrame, path, or False, optional
            What to compare with, as :func:`bayeslmm.compare_reml` takes it; by default a REML fit
            of the same model, which is made for it. False leaves the comparison out.
        findings : Findings, optional
            What the checks found, from :meth:`findings` with the topics of your choice; it is
            called without any by default.
        title : str, optional
            Heading; names the response by default.
        prob : float, optional
            Probability of all intervals; ArviZ's ``rcParams["stats.ci_prob"]`` by default.
        random_seed : int
            Seed of the simulated responses of the predictive checks and of the findings.
        overwrite : bool
            Whether to replace a file of that name.

        Returns
        -------
        pathlib.Path
            The file.

        Raises
        ------
        ValueError
            If the name does not end in ``.html`` or `prob` is no probability.
        FileExistsError
            If the file exists and is not to be overwritten.
        FileNotFoundError
            If the folder does not exist.
        StorageError
            If the system refuses to write the file; an old one stays as it is.
        DataError
            If `reml` has other parameters.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(random_seed=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = post.report(Path(folder) / "dyestuff.html", title="Dyestuff")
        ...     file.name
        'dyestuff.html'
        """
        from bayeslmm.report.page import write_report

        return write_report(
            self,
            path,
            reml=reml,
            findings=findings,
            title=title,
            prob=prob,
            random_seed=random_seed,
            overwrite=overwrite,
        )

    def __repr__(self) -> str:
        sizes = self._draws.sizes
        size = f"{sizes['chain']} chains of {sizes['draw']} draws"
        return text.fit_text(
            [f"{text.model_name(self.design)}, posterior by {self.method} ({size})"],
            self.design,
            f"{text.covariance_heading(self.design)} (posterior means):",
            text.random_effects_block(self.design, self.sds, self.corrs, self._residual_parameters),
            self.fixef(),
            self.notes,
        )
