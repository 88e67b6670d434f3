"""Marginal means, contrasts, slopes and hypotheses: methods of posteriors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from bayeslmm.fits.posterior_base import PosteriorBase

if TYPE_CHECKING:
    from bayeslmm.effects.grid import Weights
    from bayeslmm.effects.hypothesis import Hypotheses
    from bayeslmm.effects.quantities import LinearQuantities, PosteriorSource
    from bayeslmm.sampling.joint_draws import JointDraws

Names = str | Sequence[str]
Target = Literal["average", "population", "conditional"]


class PosteriorMeans(PosteriorBase):
    """Marginal means, contrasts, slopes and hypotheses of a posterior."""

    def means(
        self,
        variables: Names = (),
        *,
        at: Mapping[str, Any] | None = None,
        weights: Weights = "equal",
        by: Names | None = None,
        target: Literal["average", "population"] = "average",
    ) -> LinearQuantities:
        """Marginal means over a reference grid, computed on draws.

        Parameters
        ----------
        variables, at, weights, by, target
            As in :meth:`bayeslmm.Estimate.means`.

        Returns
        -------
        LinearQuantities
            Mean, sd, median and interval; ``.draws`` for ArviZ, ``.table(prob,
            simultaneous=True)`` and ``.contrasts()``.

        Raises
        ------
        DataError
            If a variable or a level is unknown.
        ValueError
            If an option is.

        References
        ----------
        R's ``emmeans::emmeans`` on a brms fit.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
        >>> post = model.fit(method="laplace", draws=200, random_seed=1)
        >>> post.means("Machine").draws.sizes["quantity"]
        3
        """
        from bayeslmm.effects.grid import marginal_means

        return marginal_means(
            self.design,
            self._means_source,
            variables,
            at=at,
            weights=weights,
            by=by,
            target=target,
        )

    def contrasts(
        self,
        variables: Names,
        method: str | Mapping[str, Any] | ArrayLike = "pairwise",
        *,
        at: Mapping[str, Any] | None = None,
        weights: Weights = "equal",
        by: Names | None = None,
    ) -> LinearQuantities:
        """Contrasts of marginal means, computed on draws.

        Parameters
        ----------
        variables, at, weights, by
            As in :meth:`means`.
        method
            As in :meth:`bayeslmm.Estimate.contrasts`. There is nothing to adjust: for statements
            about all contrasts at once take ``.table(simultaneous=True)``.

        Returns
        -------
        LinearQuantities

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
        >>> post = model.fit(method="laplace", draws=200, random_seed=1)
        >>> list(post.contrasts("Machine", {"C - others": [-0.5, -0.5, 1]}).table().index)
        ['C - others']
        """
        return self.means(variables, at=at, weights=weights, by=by).contrasts(method)

    def slopes(
        self,
        variable: str,
        *,
        at: Mapping[str, Any] | None = None,
        by: Names | None = None,
        new: Any = None,
        target: Target = "average",
    ) -> LinearQuantities:
        """Average slopes of the linear predictor by a covariate, computed on draws.

        Parameters
        ----------
        variable, at, by, new
            As in :meth:`bayeslmm.Estimate.slopes`.
        target : {"average", "population", "conditional"}
            The fixed part, or with "conditional" also the random slopes of the levels in the rows.

        Returns
        -------
        LinearQuantities

        Raises
        ------
        DataError
            If the variable is no covariate of the fixed part, or a level is new.
        ValueError
            If an option is unknown, or random effects are asked for at the reference grid.

        References
        ----------
        R's ``marginaleffects::avg_slopes`` on a brms fit.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
        >>> post = model.fit(method="laplace", draws=200, random_seed=1)
        >>> len(post.slopes("Days", by="Subject", target="conditional").table())
        18
        """
        from bayeslmm.effects.averages import slopes

        joint = self._effects_for(target)
        return slopes(self.design, self._means_source, variable, at=at, by=by, new=new, joint=joint)

    def comparisons(
        self,
        variable: str,
        change: Any = None,
        *,
        by: Names | None = None,
        new: Any = None,
        target: Target = "average",
    ) -> LinearQuantities:
        """Average differences of predictions when one variable changes, computed on draws.

        Parameters
        ----------
        variable, change, by, new
            As in :meth:`bayeslmm.Estimate.comparisons`.
        target : {"average", "population", "conditional"}
            As in :meth:`slopes`.

        Returns
        -------
        LinearQuantities

        Raises
        ------
        DataError
            If the variable is not in the fixed part, or a level is new.
        ValueError
            If an option does not fit.

        References
        ----------
        R's ``marginaleffects::avg_comparisons`` on a brms fit.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
        >>> post = model.fit(method="laplace", draws=200, random_seed=1)
        >>> list(post.comparisons("Machine").table().index)
        ['Machine: B - A', 'Machine: C - A']
        """
        from bayeslmm.effects.averages import comparisons

        joint = self._effects_for(target)
        return comparisons(
            self.design, self._means_source, variable, change, by=by, new=new, joint=joint
        )

    def average_predictions(
        self, by: Names | None = None, new: Any = None, *, target: Target = "average"
    ) -> LinearQuantities:
        """Predictions of the mean, averaged over rows draw by draw.

        Parameters
        ----------
        by, new
            As in :meth:`bayeslmm.Estimate.average_predictions`.
        target : {"average", "population", "conditional"}
            The fixed part, or with "conditional" also the random effects of the levels in the
            rows.

        Returns
        -------
        LinearQuantities
            Intervals are those of the average, not averages of intervals.

        References
        ----------
        R's ``marginaleffects::avg_predictions`` on a brms fit.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
        >>> post = model.fit(method="laplace", draws=200, random_seed=1)
        >>> len(post.average_predictions("Subject", target="conditional").table())
        18
        """
        from bayeslmm.effects.averages import average_predictions

        joint = self._effects_for(target)
        return average_predictions(self.design, self._means_source, by=by, new=new, joint=joint)

    def hypothesis(
        self, expressions: Names, *, rope: float | Sequence[float] | None = None
    ) -> Hypotheses:
        """Judge hypotheses about any parameters, written as they are read.

        Parameters
        ----------
        expressions : str or sequence of str
            Arithmetic on coefficients (``"Days"``, ``"age:Sex[T.Female]"``), marginal means of a
            factor's levels (``"Sex[Male]"``), ``"sd[Subject, Days]"``,
            ``"cor[Subject, Intercept, Days]"`` (in either order) and ``"sigma"``, compared by one
            of ``< > =``.
            Labels that look like an operation stand in backticks: ``"`I(x ** 2)` < 0"``.
        rope : float or pair of float, optional
            Region in which left side less right side is practically zero; a number stands for
            that far on either side.

        Returns
        -------
        Hypotheses
            Mean, sd, median and interval of left side less right side; its `probability` of the
            sign that the hypothesis states; `posterior_odds` and `prior_odds` of it, and their
            quotient, the `evidence_ratio`. Where all S draws agree, the odds are only known to
            be beyond S: `bound` is then ">" or "<". For ``=`` the evidence ratio is the
            Savage-Dickey ratio of the posterior to the prior density at zero, above one where the
            data favour equality: both densities are exact given the covariance parameters. It is
            NaN where it is not known, and `notes` say why: under priors that are not proper or not
            normal, for ``=`` about anything else than fixed effects, or where no prior draw is on
            one side. `rope_probability` where asked for.

        Raises
        ------
        FormulaError
            If an expression cannot be read, or a label stands for two things (a covariate called
            ``sigma``: write ``beta[sigma]``); shows the place.

        Notes
        -----
        brms calls `posterior_odds` the evidence ratio of an inequality; that is the same as here
        where the prior odds are one.

        References
        ----------
        R's ``brms::hypothesis``; Dickey (1971), doi:10.1214/aoms/1177693507; Gelfand, Smith
        (1990), doi:10.1080/01621459.1990.10476213, for the average of conditional densities.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
        >>> post = model.fit(method="laplace", draws=200, random_seed=1)
        >>> post.hypothesis(["Days > 0", "sd[Subject, Days] < sigma"]).table()["probability"]
        hypothesis
        Days > 0                     1.0
        sd[Subject, Days] < sigma    1.0
        Name: probability, dtype: float64
        """
        from bayeslmm.effects.hypothesis import posterior_hypotheses

        return posterior_hypotheses(
            self.design, self.priors, self._joint, lambda: self._plan, expressions, rope
        )

    def _effects_for(self, target: str) -> JointDraws | None:
        from bayeslmm.effects.averages import ROW_TARGETS
        from bayeslmm.effects.grid import check_target

        check_target(target, ROW_TARGETS)
        return self._joint if target == "conditional" else None

    @property
    def _means_source(self) -> PosteriorSource:
        from bayeslmm.effects.quantities import source_of_draws

        return source_of_draws(self.design, self._joint)
