"""Tables and text for papers: methods of posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pandas as pd

from bayeslmm.fits.posterior_base import PosteriorBase
from bayeslmm.fits.report_methods import TableReporting

if TYPE_CHECKING:
    from bayeslmm.report.columns import Column
    from bayeslmm.report.findings import Findings
    from bayeslmm.sampling.diagnostics import Diagnostics


class PosteriorReporting(TableReporting, PosteriorBase):
    """Tables and text for papers of a posterior."""

    if TYPE_CHECKING:

        @property
        def diagnostics(self) -> Diagnostics:
            """Convergence checks of the draws."""

    def glance(self) -> pd.DataFrame:
        """One row about the posterior, as broom.mixed's ``glance``.

        Returns
        -------
        pandas.DataFrame
            Columns method, nobs, rows_dropped, sigma (posterior mean), log_evidence and its Monte
            Carlo error (NaN where there is none), chains, draws (of all chains together),
            max_rhat, min_ess_bulk, min_ess_tail, pareto_k (of the approximation, or of the
            sampler's proposals), divergences (NaN where the method has none), ok (whether all
            checks passed), and ``ngrps_`` and the name of each grouping factor: its levels.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> row = model.fit(random_seed=1).glance().iloc[0]
        >>> row["method"], int(row["nobs"]), int(row["draws"]), int(row["ngrps_Batch"])
        ('collapsed', 30, 4000, 6)
        """
        from bayeslmm.report.columns import glance_posterior

        return glance_posterior(self.data, self.design, self.priors, self.diagnostics)

    def augment(
        self,
        data: Any = None,
        *,
        incomplete: Literal["omit", "keep"] = "omit",
        prob: float | None = None,
    ) -> pd.DataFrame:
        """Put fitted values and residuals beside the data, as broom.mixed's ``augment``.

        Parameters
        ----------
        data : data frame, optional
            The data the model was built from, with all columns wanted; by default the variables of
            the model in the rows used.
        incomplete : {"omit", "keep"}
            Whether rows of `data` dropped for missing values are left out or kept with NaN.
        prob : float, optional
            Probability of the interval; ArviZ's ``rcParams["stats.ci_prob"]`` by default.

        Returns
        -------
        pandas.DataFrame
            The data with their index, and columns ``.fitted`` (posterior mean),
            ``.fitted_low`` and ``.fitted_high`` (interval of the fitted value, without residual
            noise), ``.fixed`` (random effects at zero), ``.resid`` (response less ``.fitted``),
            ``.pearson_resid`` (mean over the draws of the residual over its standard deviation
            sigma / sqrt(weight); no leverage enters) and, where the model has them, ``.offset``
            and ``.weights``. ``attrs["rows_dropped"]`` counts the rows without.

        Raises
        ------
        ValueError
            If `incomplete` is unknown or `prob` is no probability.
        DataError
            If `data` are not those of the model.

        References
        ----------
        R's ``broom.mixed::augment.merMod``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> table = model.fit(method="laplace", random_seed=1).augment()
        >>> list(table.columns[2:6])
        ['.fitted', '.fitted_low', '.fitted_high', '.fixed']
        """
        from bayeslmm.report.augment import augment, posterior_values
        from bayeslmm.summaries.posterior_tables import beta_mean, interval_defaults

        prob, kind = interval_defaults(prob)
        design = self.design
        return augment(
            design,
            data,
            incomplete,
            lambda: posterior_values(
                design, beta_mean(self._draws), self._means, self._joint, prob, kind
            ),
        )

    def findings(
        self, topics: str | Sequence[str] | None = None, *, random_seed: int | None = 0
    ) -> Findings:
        """Run the checks and say what each found: alarms, notes, nothing, or not run.

        Parameters
        ----------
        topics : str or sequence of str, optional
            Of "convergence", "residuals" (:meth:`residual_checks`), "influence"
            (:meth:`influence` of rows and of the levels of each grouping factor), "sensitivity"
            (:meth:`sensitivity`, :meth:`contraction` and :func:`bayeslmm.compare_reml`),
            "singularity" (:meth:`singularity`) and "loo" (:meth:`loo` of rows). By default all,
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

        return find(cast("Any", self), topics, random_seed=random_seed)

    def methods_paragraph(
        self, *, references: bool = False, findings: Findings | None = None
    ) -> str:
        """Describe model, priors, sampling and diagnostics in prose, for a paper's methods section.

        Parameters
        ----------
        references : bool
            Whether the literature to cite follows.
        findings : Findings, optional
            What :meth:`findings` found, to be said too; without it, of the checks only those of
            convergence are told of.

        Returns
        -------
        str
            Formula, fixed and random effects, rows and columns dropped, priors with their values
            and whether they are defaults, the engine (and why another one was fallen back to),
            draws and chains, what the convergence checks found, versions of the software.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> text = model.fit(random_seed=1).methods_paragraph()
        >>> "sd[Batch, Intercept] ~ HalfStudentT(3, 63)" in text
        True
        """
        from bayeslmm.report.findings import methods_sentences
        from bayeslmm.report.methods import posterior_paragraph

        return posterior_paragraph(
            self.data,
            self.design,
            self.priors,
            self.diagnostics,
            () if findings is None else methods_sentences(findings),
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
            cast("Any", self),
            self._plan,
            path,
            glance=self.glance(),
            reml=reml,
            findings=findings,
            title=title,
            prob=prob,
            random_seed=random_seed,
            overwrite=overwrite,
        )

    def _column(self, level: float) -> Column:
        from bayeslmm.report.columns import posterior_column

        return posterior_column(self.data, self.design, self.priors, self._joint, level)
