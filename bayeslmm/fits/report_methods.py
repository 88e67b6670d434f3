"""Tables and text for papers: methods of posteriors and estimates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from bayeslmm.fits.estimate_base import EstimateBase

if TYPE_CHECKING:
    from bayeslmm.priors.record import Priors
    from bayeslmm.report.columns import Column
    from bayeslmm.report.tables import Markup


class TableReporting:
    """Tables of one fit in the languages of papers; a fit gives its column."""

    def _column(self, level: float) -> Column:
        raise NotImplementedError

    def to_html(self, **options: Any) -> Markup:
        """Table of the fit in HTML: see :func:`bayeslmm.model_table`.

        Parameters
        ----------
        **options
            Of :func:`bayeslmm.model_table`, but `format`.

        Returns
        -------
        Markup
            A string that notebooks show as a table.
        """
        return self._table("html", options)

    def to_latex(self, **options: Any) -> Markup:
        """Table of the fit in LaTeX, for the package booktabs; see :meth:`to_html`.

        Parameters
        ----------
        **options
            Of :func:`bayeslmm.model_table`, but `format`.

        Returns
        -------
        Markup
        """
        return self._table("latex", options)

    def to_markdown(self, **options: Any) -> Markup:
        """Table of the fit in Markdown; see :meth:`to_html`.

        Parameters
        ----------
        **options
            Of :func:`bayeslmm.model_table`, but `format`.

        Returns
        -------
        Markup
        """
        return self._table("markdown", options)

    def _table(
        self, format: Literal["html", "latex", "markdown"], options: dict[str, Any]
    ) -> Markup:
        from bayeslmm.report.model_table import table_text

        return table_text(self, format=format, **options)


class EstimateReporting(TableReporting, EstimateBase):
    """Tables and text for papers of an estimate."""

    if TYPE_CHECKING:

        @property
        def notes(self) -> tuple[str, ...]:
            """Everything a reader should know."""

    def glance(self) -> pd.DataFrame:
        """One row about the fit, as broom.mixed's ``glance``.

        Returns
        -------
        pandas.DataFrame
            Columns method, nobs, rows_dropped, sigma, loglik, aic, bic, criterion (REML criterion,
            or -2 log likelihood), n_parameters, df_residual (nobs less n_parameters), singular,
            converged, and ``ngrps_`` and the name of each grouping factor: its number of levels.

        References
        ----------
        R's ``broom.mixed::glance.merMod``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> row = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml().glance().iloc[0]
        >>> int(row["nobs"]), int(row["df_residual"]), int(row["ngrps_Subject"])
        (180, 174, 18)
        """
        from bayeslmm.report.columns import glance_estimate

        return glance_estimate(self.fit, self.design)

    def augment(
        self,
        data: Any = None,
        *,
        incomplete: Literal["omit", "keep"] = "omit",
        influence: bool = False,
    ) -> pd.DataFrame:
        """Put fitted values and residuals beside the data, as broom.mixed's ``augment``.

        Parameters
        ----------
        data : data frame, optional
            The data the model was built from, with all columns wanted; by default the variables of
            the model in the rows used.
        incomplete : {"omit", "keep"}
            Whether rows of `data` dropped for missing values are left out or kept with NaN.
        influence : bool
            Whether leverages and Cook's distances are added, those of :meth:`influence`.

        Returns
        -------
        pandas.DataFrame
            The data with their index, and columns ``.fitted``, ``.fixed`` (random effects at
            zero), ``.resid``, ``.pearson_resid`` (residual over its standard deviation sigma /
            sqrt(weight), lme4's scaled Pearson residual; that of :meth:`influence` which is
            called standardised is divided by the root of one less the leverage too), with
            `influence` ``.hat`` (leverage) and ``.cooksd`` (Cook's distance), and, where the
            model has them, ``.offset`` and ``.weights``. ``attrs["rows_dropped"]`` counts the
            rows without.

        Raises
        ------
        ValueError
            If `incomplete` is unknown.
        DataError
            If `data` are not those of the model.

        References
        ----------
        R's ``broom.mixed::augment.merMod``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> list(reml.augment().columns)
        ['Batch', 'Yield', '.fitted', '.fixed', '.resid', '.pearson_resid']
        """
        from bayeslmm.report.augment import augment, estimate_values

        return augment(
            self.design,
            data,
            incomplete,
            lambda: estimate_values(self.design, self.fit, self._modes, influence=influence),
        )

    def methods_paragraph(self, *, references: bool = False, priors: Priors | None = None) -> str:
        """Describe model and estimation in prose, for the methods section of a paper.

        Parameters
        ----------
        references : bool
            Whether the literature to cite follows.
        priors : Priors, optional
            Of "MAP", the priors to name, ``model.priors``: an estimate does not hold them.

        Returns
        -------
        str
            Formula, fixed and random effects, rows dropped, how parameters were estimated, a
            singular fit or failed convergence, versions of the software.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> print(reml.methods_paragraph())
        A linear mixed model of Yield was fitted to 30 observations ...
        """
        from bayeslmm.report.methods import estimate_paragraph

        return estimate_paragraph(self.fit, self.design, self.notes, priors, references=references)

    def _column(self, level: float) -> Column:
        from bayeslmm.report.columns import estimate_column

        return estimate_column(self.fit, self.design, self._modes, level)
