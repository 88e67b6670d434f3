"""The user-facing model: a formula and data made into estimates and posteriors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike

from bayeslmm.data.building import build_design
from bayeslmm.data.design import Design, require_marginal
from bayeslmm.data.frames import plain_frame
from bayeslmm.data.inputs import fixed_mapping
from bayeslmm.data.known_covariance import known_covariances
from bayeslmm.data.pedigree import Pedigree
from bayeslmm.data.relationships import Relationship, relationships_of
from bayeslmm.data.sources import open_source
from bayeslmm.data.unobserved import Missing
from bayeslmm.estimation.estimate import Fit, fit_likelihood
from bayeslmm.estimation.fallback import first_converging
from bayeslmm.estimation.model import Model
from bayeslmm.estimation.reading import read_source, refuse_reading
from bayeslmm.fits.estimate import Estimate
from bayeslmm.fits.planning import Planning
from bayeslmm.fits.products import CrossProducts, design_of
from bayeslmm.formula.contrasts import check_coded, coded_formula
from bayeslmm.formula.evaluation import own_functions
from bayeslmm.formula.grammar import parse
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.parts import streamed_design
from bayeslmm.priors.defaults import resolve_priors
from bayeslmm.summaries.text import (
    contrast_notes,
    design_notes,
    groups_line,
    html_page,
    model_name,
    residual_lines,
)

if TYPE_CHECKING:
    import pymc as pm

    from bayeslmm.estimation.executor import Executor
    from bayeslmm.fits.posterior import Posterior
    from bayeslmm.fits.study import Study
    from bayeslmm.sampling.engine import FitMethod
    from bayeslmm.selection.all_fit import AllFit
    from bayeslmm.storage.checkpoint import CheckpointFile

Form = Literal["noncentered", "centered", "marginal"]


@dataclass(frozen=True, eq=False, init=False, repr=False)
class LMM(Planning):
    """A linear mixed model: y = X beta + Z u + e with u ~ N(0, G) and e ~ N(0, R).

    Parameters
    ----------
    formula : str
        lme4's grammar, such as ``"y ~ x + (x | g)"``; what fixed effects and slopes can be is in
        the reference of formulas. A formula is data: it runs no code but that of listed functions
        and of your own.
    data : DataFrame, path or other source
        Pandas, polars, pyarrow or anything narwhals reads. Rows with a missing value in a needed
        variable are dropped and counted. Data beyond memory are read in batches, and only sums over
        their rows kept: the path of a Parquet or CSV file, a folder or a pattern of them, a Dataset
        of pyarrow, a DuckDB relation, a Polars LazyFrame, an Ibis table, a Dask data frame, a list
        of data frames, a function that returns a new iterator over data frames at each call, or
        such an iterator where one reading is enough.
    priors : {"flat"} or mapping, optional
        Overrides of the default priors by key ("Days", "sd[Subject]", "cor[Subject]", "sigma",
        ...): PyMC distributions, or texts in Stan's and brms's words such as ``"normal(0, 10)"``,
        ``"student_t(3, 0, 2.5)"`` or ``"lkj(2)"``, truncated to where the parameter lives. Or
        "flat", under which the posterior mode is the REML estimate.
    weights : str or array-like (n,), optional
        Precision weights, a column or values: the residual variance is sigma^2 / weight.
    functions : mapping of str to callable, optional
        Functions of your own by the names that the formula calls them. A function gets columns
        (copies, as pandas Series) or what other functions made of them, and returns one value per
        row that depends on no other row. A formula can call nothing else than these and the listed
        functions.
    contrasts : mapping, optional
        Contrasts of factors of the fixed part by name: "treatment", "sum", "helmert", "poly",
        "diff" (MASS's sdif) or "SAS"; ``("treatment", "b")`` with a base level; a matrix (levels,
        columns), or a data frame with levels as its index. The formula then has
        ``C(f, contr.sum)`` in place of ``f``, and labels and files are those of that formula.
    residual : str, optional
        Structure of the residual covariance matrix R, such as ``"us(visit | id)"``,
        ``"ar1(time | g)"`` or ``"strata(f)"``; by default residuals are independent with one
        variance. ``"se(column)"`` has known standard errors, as in a meta-analysis;
        ``"known(V | study)"`` the known covariance matrix V of `covariances`.
    relationships : mapping of str to DataFrame, Pedigree or Relationship, optional
        Known covariance A of the levels of a grouping factor, up to a variance: their random
        effects are normal with covariance A x Sigma, as in an animal model. A data frame is A with
        labels of rows and columns. Levels of A without rows have random effects too.
    missing : {"drop", "keep", "raise"}
        What becomes of incomplete rows. Those that lack nothing but the response tell nothing of
        the parameters and are dropped, or kept to be predicted: see
        :meth:`Posterior.predict_missing`. With "raise" any incomplete row is an error, as with R's
        ``na.fail``.
    fixed : mapping of str to number or matrix, optional
        Covariance parameters that are known, by the names that priors have: ``{"sigma": 1.0}``,
        ``{"sd[study]": 0.3}``, ``{"cor_residual": 0.5}``; correlations that are several as a
        matrix. They have no prior, are held in every method, and count for nothing in AIC and BIC.
    family : {"gaussian", "student"}
        Distribution of the residuals: normal, or Student's t with scale sigma and nu degrees of
        freedom, for outliers; their standard deviation is then sigma sqrt(nu / (nu - 2)).
    sigma : str, optional
        Predictors of the log residual scale, such as ``"~ x + (1 | g)"``. With it, or with
        ``family="student"``, draws come from NUTS and there are no REML, ML and MAP estimates.
    covariances : mapping of str to DataFrame, array-like or sparse matrix, optional
        The known covariance matrix V of the residuals that ``residual="known(V | study)"`` names,
        block diagonal by study. A data frame has labels of rows and columns, which are the values
        of the column V of the data; another matrix has a row for each row of the data, in their
        order, rows with missing values included.
    executor : concurrent.futures.Executor or the like, optional
        Reads pieces of data beyond memory: files and row groups of Parquet files, frames of a list,
        partitions of Dask. The sums do not depend on it, nor on the number of its workers; to
        rounding they are those of one reading here, without it. A Dask data frame without it is
        read by its own scheduler.
    progressbar : bool
        Whether to show, on a terminal, how much of data beyond memory has been read.
    checkpoint : path, optional
        A file that keeps the sums of what has been read of data beyond memory, in pieces: written
        every half minute, and when an error or Ctrl-C ends the reading, which the same call then
        goes on with. It is removed when all is read.

    Attributes
    ----------
    model : Model
        Design and priors, with the cross-products and the REML fit, which all fits share.

    Raises
    ------
    FormulaError
        If the formula or a variable in it is wrong; shows the place.
    DataError
        If the data cannot be used.
    PriorError
        If a prior does not fit its parameter.
    StorageError
        If the checkpoint is that of another model or of data that have changed, or cannot be
        written.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"))
    >>> print(round(model.reml().criterion, 4))
    1743.6283
    """

    def __init__(
        self,
        formula: str,
        data: Any,
        *,
        priors: Literal["default", "flat"] | Mapping[str, Any] | None = None,
        weights: str | ArrayLike | None = None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        contrasts: Mapping[str, Any] | None = None,
        residual: str | None = None,
        relationships: Mapping[str, pd.DataFrame | Pedigree | Relationship] | None = None,
        missing: Missing = "drop",
        fixed: Mapping[str, Any] | None = None,
        family: Literal["gaussian", "student"] = "gaussian",
        sigma: str | None = None,
        covariances: Mapping[str, Any] | None = None,
        executor: Executor | None = None,
        progressbar: bool = True,
        checkpoint: str | PathLike[str] | None = None,
    ) -> None:
        functions = own_functions(functions)
        read = parse(formula, functions)
        source, held = open_source(data), fixed_mapping(fixed)
        if contrasts is not None:
            read = parse(coded_formula(read, contrasts), functions)
            if source is None:
                check_coded(plain_frame(data, list(contrasts)), contrasts)
        known, matrices = relationships_of(relationships), known_covariances(covariances)
        if source is not None:
            kept = None if checkpoint is None else _checkpoint_file(checkpoint)
            how = partial(read_source, executor=executor, progressbar=progressbar, checkpoint=kept)
            design: Design = streamed_design(
                read,
                source,
                weights,
                functions,
                held,
                residual,
                known,
                how,
                missing=missing,
                family=family,
                sigma=sigma,
                covariances=matrices,
            ).with_source(source)
        else:
            refuse_reading(executor, checkpoint)
            design = build_design(
                read,
                data,
                weights=weights,
                functions=functions,
                residual=residual,
                relationships=known,
                missing=missing,
                fixed=held,
                family=family,
                sigma=sigma,
                covariances=matrices,
            )
        check_coded(design.sample, contrasts or {})
        object.__setattr__(self, "model", Model(design, resolve_priors(design, priors)))

    @property
    def formula(self) -> str:
        """The formula as written."""
        return self.design.formula.source

    @property
    def nobs(self) -> int:
        """Number of rows used."""
        return self.design.n

    @property
    def dropped(self) -> int:
        """Number of rows dropped for missing values."""
        return self.design.n_dropped

    @property
    def X(self) -> pd.DataFrame:
        """Fixed-effects design matrix, rows by coefficients."""
        return self.design.X_frame()

    @property
    def y(self) -> pd.Series:
        """Response, after its transformation."""
        return self.design.y_series()

    @property
    def Z(self) -> sp.csr_array:
        """Random-effects design matrix (n, q), sparse; `effect_labels` names its columns."""
        return self.design.Z_matrix()

    @property
    def effect_labels(self) -> pd.MultiIndex:
        """Group, level and term of the columns of Z, and so of the random effects."""
        return self.design.Z_labels()

    @property
    def system(self) -> Plan:
        """Cross-products of the data, all that likelihoods and samplers need of it."""
        return self.model.system

    def reml(self, *, fallback: Sequence[str | LMM] = ()) -> Estimate:
        """Estimate by restricted maximum likelihood.

        Parameters
        ----------
        fallback : sequence of str or LMM, optional
            What is fitted in place of this model where its search does not converge, its fit is
            singular, or the data do not determine all of its covariance parameters: structures of
            the residuals, such as ``("toeph(visit | id)", "cs(visit | id)")``, or other models,
            tried in this order until one has none of these faults. `notes` of the estimate say
            what was tried and why it was not kept, and so does the log.

        Returns
        -------
        Estimate
            Its `model` is the one that was kept; ``LMM.from_fit(estimate)`` goes on with it.

        Raises
        ------
        SamplingError
            If a fall-back was given, and no model has converged.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml().sds["Subject"].round(2)
        Intercept    24.74
        Days          5.92
        Name: sd, dtype: float64
        >>> fev = blm.load_dataset("fev")
        >>> trial = blm.LMM("FEV1 ~ ARMCD * AVISIT", fev, residual="us(AVISIT | USUBJID)")
        >>> trial.reml(fallback=["toeph(AVISIT | USUBJID)", "cs(AVISIT | USUBJID)"]).notes
        ()
        """
        return self._estimate("reml()", lambda model: model.reml, fallback)

    def ml(self, *, fallback: Sequence[str | LMM] = ()) -> Estimate:
        """Estimate by maximum likelihood, for likelihood-ratio tests and information criteria.

        Parameters
        ----------
        fallback : sequence of str or LMM, optional
            As in :meth:`reml`.

        Returns
        -------
        Estimate

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> model.ml().sds["Batch"].round(2).to_dict(), model.reml().sds["Batch"].round(2).to_dict()
        ({'Intercept': 37.26}, {'Intercept': 42.0})
        """
        return self._estimate("ml()", lambda model: fit_likelihood(model.system, "ML"), fallback)

    def _estimate(
        self, what: str, fit: Callable[[Model], Fit], fallback: Sequence[str | LMM]
    ) -> Estimate:
        """Estimate this model, or the first of several that converges."""
        require_marginal(self.design, what)
        if not fallback:
            return Estimate(self.model, fit(self.model))
        if isinstance(fallback, str):
            raise TypeError(f"fallback={fallback!r}: a sequence of structures is expected.")
        for other in fallback:
            if not isinstance(other, str | LMM):
                raise TypeError(f"fallback: {other!r} is neither a structure nor a model.")
        others = [self.update(residual=x) if isinstance(x, str) else x for x in fallback]
        for other in others:
            require_marginal(other.design, what)
        models = [self.model, *(other.model for other in others)]
        model, made, notes = first_converging(models, fit)
        return Estimate(model, made, tried=notes)

    def map(self) -> Estimate:
        """Mode of the marginal posterior of standard deviations, correlations and sigma.

        The random effects (and beta, under normal or flat priors) are integrated out and no
        Jacobian is added, so that under flat priors this is the REML estimate.

        Returns
        -------
        Estimate

        Raises
        ------
        SamplingError
            If the density still rises where the support of a prior ends, so that it has no mode.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> model.map().sds["Batch"].round(1).to_dict()
        {'Intercept': 39.1}
        """
        from bayeslmm.estimation.map_estimate import fit_map

        require_marginal(self.design, "map()")
        return Estimate(self.model, fit_map(self.system, self.priors, self.model.reml_or_none()))

    def all_fit(
        self, method: Literal["REML", "ML"] = "REML", *, optimisers: Sequence[str] | None = None
    ) -> AllFit:
        """Fit the model by several optimisers and from several starts, for the doubtful.

        Parameters
        ----------
        method : {"REML", "ML"}
            The criterion.
        optimisers : sequence of str, optional
            Some of "bayeslmm, start x 0.1", "bayeslmm, start x 10" (the package's own search from
            other starts), "L-BFGS-B", "BFGS", "trust-constr", "Nelder-Mead" and "Powell" (SciPy's,
            on the same criterion); all by default. "bayeslmm" is always there.

        Returns
        -------
        AllFit
            Criterion, estimates, time and convergence by optimiser, and a verdict in words.

        Raises
        ------
        ValueError
            If the method or an optimiser is unknown.
        DataError
            If there is nothing to search for, as in a model without random effects.

        References
        ----------
        R's ``lme4::allFit``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> model.all_fit(optimisers=["L-BFGS-B", "Nelder-Mead"]).verdict
        'No search found a lower criterion than the estimate; 2 of 2 others end within 0.001 of it.'
        """
        from bayeslmm.selection.all_fit import all_fit

        if method not in ("REML", "ML"):
            raise ValueError(f"method={method!r}: 'REML' or 'ML' is expected.")
        require_marginal(self.design, "all_fit()")
        fit = self.model.reml if method == "REML" else fit_likelihood(self.system, "ML")
        return all_fit(self.design, self.system, fit, method, optimisers)

    def pymc(self, form: Form = "noncentered") -> pm.Model:
        """PyMC model with labelled dimensions.

        Parameters
        ----------
        form : {"noncentered", "centered", "marginal"}
            Random effects as scaled standard normal variables, as normal variables, or integrated
            out together with beta by a PyTensor Op with its own gradient. Of data beyond memory
            there is the marginal one.

        Returns
        -------
        pymc.Model

        Raises
        ------
        DataError
            If the form needs rows that the model does not keep.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> [variable.name for variable in model.pymc("marginal").free_RVs]
        ['sd_Batch', 'sigma']
        """
        from bayeslmm.sampling.model import build_model

        if form == "marginal":
            require_marginal(self.design, "form='marginal'")
        system = self.system if form == "marginal" else None
        return build_model(self.design, self.priors, form, system)

    def fit(
        self,
        *,
        method: FitMethod = "auto",
        draws: int = 1000,
        chains: int = 4,
        random_seed: int | np.random.Generator | None = None,
        **kwargs: Any,
    ) -> Posterior:
        """Draw from the posterior.

        Parameters
        ----------
        method : {"auto", "collapsed", "nuts", "laplace"}
            "collapsed" integrates the fixed and random effects out, samples the covariance
            parameters and draws the effects exactly given them. "nuts" samples everything with
            PyMC (nutpie by default). "laplace" is a Gaussian approximation for the covariance
            parameters on the unconstrained scale with exact draws of the effects. "auto" is
            "collapsed", or "nuts" where that refuses; `notes` says why. With Student-t residuals
            or predictors of sigma it is "nuts".
        draws, chains : int
            Draws per chain and number of chains.
        random_seed : int or numpy.random.Generator, optional
            Seed, kept in :attr:`Posterior.random_seeds`.
        **kwargs
            For "collapsed" and "auto": `store_u`, whether to store draws of the random effects
            (by default where they fit into 512 MB) or their means, standard deviations and
            quantiles. For "nuts": `form` ("noncentered", "centered", "marginal"; of data beyond
            memory "marginal", which needs no rows), `tune`, `cores`, `progressbar`,
            `nuts_sampler`, `target_accept` and whatever ``pymc.sample`` takes.

        Returns
        -------
        Posterior

        Raises
        ------
        ValueError
            If the method is unknown.
        TypeError
            If the method has no such option.
        PriorError
            If the posterior is improper ("collapsed" and "auto").
        SamplingError
            If sampling ended early, or the method does not work for this posterior.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(random_seed=1)
        >>> post.method
        'collapsed'
        """
        from bayeslmm.fits.posterior import Posterior
        from bayeslmm.sampling.engine import require_positive, sample_posterior

        require_positive(draws=draws, chains=chains)
        tree = sample_posterior(
            self.model,
            method=method,
            draws=draws,
            chains=chains,
            random_seed=random_seed,
            options=kwargs,
        )
        return Posterior(self.model, tree)

    def update(
        self,
        formula: str | None = None,
        *,
        data: Any = None,
        priors: Literal["default", "flat"] | Mapping[str, Any] | None = None,
        weights: str | ArrayLike | Literal[False] | None = None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        contrasts: Mapping[str, Any] | None = None,
        residual: str | Literal[False] | None = None,
        relationships: Mapping[str, pd.DataFrame | Pedigree | Relationship | None] | None = None,
        fixed: Mapping[str, Any] | None = None,
        missing: Missing | None = None,
        family: Literal["gaussian", "student"] | None = None,
        sigma: str | Literal[False] | None = None,
        covariances: Mapping[str, Any] | None = None,
    ) -> Self:
        """A changed model: what is not given stays as it is.

        Parameters
        ----------
        formula : str, optional
            A new formula or a change of the old one: a dot on the left stands for the old response,
            as a term on the right for the old right-hand side, and ``-`` takes terms out, as in
            ``"~ . - Days"`` and ``". ~ . - (Days | Subject) + (1 | Subject)"``.
        data : DataFrame, path or other source, optional
            New data. By default those of the model, which keeps the rows it used and the variables
            of its formula. Data beyond memory are read again, all of their rows, unless only priors
            and known parameters change.
        priors : {"default", "flat"} or mapping, optional
            Priors that were given for this model are kept, parameter by parameter, and the others
            computed from the new data. A mapping adds to them or, with None in place of a prior,
            takes one away. "default" and "flat" replace all.
        weights : str, array-like (n,) or False, optional
            New weights, of the rows of the new data or of those used; False for none. A column of
            weights is looked up in new data.
        functions : mapping of str to callable, optional
            Functions of your own that are new or replace those of the model.
        contrasts : mapping, optional
            Contrasts that are new or replace those of a factor; None gives it the default ones. A
            factor ``C(f, contr.sum)`` can be called ``f`` in a change of the formula.
        residual : str or False, optional
            A new structure of the residuals; False for independent ones of one variance.
        relationships : mapping, optional
            Relationships that are new or replace those of the model; None takes one away.
        fixed : mapping, optional
            Known parameters that are new or replace those of the model; None frees one.
        missing : {"drop", "keep", "raise"}, optional
            As of the model, but that "raise" has to be asked for again. Rows that were dropped need
            `data` to be kept.
        family : {"gaussian", "student"}, optional
            Distribution of the residuals.
        sigma : str or False, optional
            Predictors of the log residual scale; False for none.
        covariances : mapping, optional
            A known covariance matrix of the residuals that replaces that of the model, or that a
            new structure names. New data need it where it has no labels.

        Returns
        -------
        LMM

        Raises
        ------
        FormulaError
            If the formula is wrong, or a term to be taken out is not there.
        DataError
            If new data or weights are needed.
        PriorError
            If the new model has none of the parameters that a prior was given for; one for several
            parameters, such as ``"sd[g]"``, stays with those that remain.

        References
        ----------
        R's ``update`` and ``update.formula``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"))
        >>> model.update("~ . - (Days | Subject) + (1 | Subject)").formula
        'Reaction ~ Days + (1 | Subject)'
        """
        from bayeslmm.storage.changes import updated_design, updated_priors

        design = updated_design(
            self.design,
            data=data,
            formula=formula,
            weights=weights,
            functions=functions,
            contrasts=contrasts,
            residual=residual,
            relationships=relationships,
            fixed=fixed,
            missing=missing,
            family=family,
            sigma=sigma,
            covariances=covariances,
        )
        return self._of(Model(design, updated_priors(self.priors, design, priors)))

    @classmethod
    def from_fit(cls, fit: Posterior | Estimate, *, priors: Any = None) -> Self:
        """The model of a posterior or an estimate, such as one that was loaded.

        Parameters
        ----------
        fit : Posterior or Estimate
            What was fitted.
        priors : {"default", "flat"} or mapping, optional
            As in :meth:`update`; those of the fit by default.

        Returns
        -------
        LMM
            With the cross-products and the REML fit of the other model, unless priors are changed.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> post = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).fit()
        >>> blm.LMM.from_fit(post).formula
        'Yield ~ 1 + (1 | Batch)'
        """
        from bayeslmm.storage.changes import updated_priors

        if priors is None:
            return cls._of(fit.model)
        return cls._of(Model(fit.design, updated_priors(fit.priors, fit.design, priors)))

    @classmethod
    def planned(
        cls,
        formula: str,
        data: Any,
        truth: Mapping[str, Any],
        *,
        weights: str | ArrayLike | None = None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        residual: str | None = None,
        relationships: Mapping[str, pd.DataFrame | Pedigree | Relationship] | None = None,
        fixed: Mapping[str, Any] | None = None,
    ) -> Study:
        """A planned study: rows without a response, the model, and what is taken to be true.

        Parameters
        ----------
        formula : str
            The model that the data will be analysed by.
        data : DataFrame
            The rows, such as those of :func:`simulate_design`; the response need not be there.
        truth : mapping of str to number, matrix or distribution
            Parameters by the names that `priors` and `fixed` have: coefficients ("Days"), standard
            deviations ("sd[Subject, Days]", "sd[Subject]" for all of them), correlations
            ("cor[Subject]"), "sigma" and those of a residual structure. Coefficients that are not
            named are zero, and so are correlations of random effects. PyMC distributions in place
            of numbers make the truth draws: another for each data set.
        weights, functions, residual, relationships, fixed
            As for :class:`LMM`.

        Returns
        -------
        Study
            With power, power curves, sample sizes and assurance.

        Raises
        ------
        FormulaError
            If the formula is wrong.
        DataError
            If the rows cannot be used.
        PriorError
            If the truth has an unknown name, a value out of range, or lacks a standard deviation.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> design = blm.simulate_design(
        ...     {"class": 20, "class/pupil": 15}, between={"class": {"arm": ["a", "b"]}}
        ... )
        >>> truth = {"arm[T.b]": 0.4, "sd[class]": 0.3, "sigma": 1.0}
        >>> study = blm.LMM.planned("score ~ arm + (1 | class)", design, truth)
        >>> study.design.coefs
        ('Intercept', 'arm[T.b]')
        """
        from bayeslmm.fits.study import Study
        from bayeslmm.planning.studies import Planned, with_placeholder
        from bayeslmm.planning.truth import truth_of_values

        read = parse(formula, own_functions(functions))
        design = build_design(
            read,
            with_placeholder(read, data),
            weights=weights,
            functions=own_functions(functions),
            residual=residual,
            relationships=relationships_of(relationships),
            fixed=fixed_mapping(fixed),
        )
        return Study(Planned(design, truth_of_values(design, truth)))

    @classmethod
    def from_products(
        cls,
        products: CrossProducts,
        *,
        priors: Literal["default", "flat"] | Mapping[str, Any] | None = None,
        fixed: Mapping[str, Any] | None = None,
    ) -> Self:
        """The model of cross-products: of all rows that went into them, wherever these are.

        To rounding it is the model of the pooled rows: the same columns, levels, priors and
        criterion and, with one seed, the same draws. Levels of grouping factors that have one
        label in two parts are one level.

        Parameters
        ----------
        products : CrossProducts
            Such as the sum of those of several sites.
        priors : {"flat"} or mapping, optional
            As for :class:`LMM`.
        fixed : mapping of str to number or matrix, optional
            As for :class:`LMM`.

        Returns
        -------
        LMM
            Of data beyond memory: what needs rows says so.

        Raises
        ------
        DataError
            If all rows together are too few, or have too few levels.
        PriorError
            If a prior does not fit its parameter.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> oats = blm.load_dataset("Oats")
        >>> halves = [oats.iloc[:36], oats.iloc[36:]]
        >>> parts = [blm.CrossProducts.of("yield ~ nitro + (1 | Block)", own) for own in halves]
        >>> print(round(blm.LMM.from_products(sum(parts)).reml().sigma, 2))
        15.97
        """
        design = design_of(products, fixed_mapping(fixed))
        return cls._of(Model(design, resolve_priors(design, priors)))

    @classmethod
    def _of(cls, model: Model) -> Self:
        made = object.__new__(cls)
        object.__setattr__(made, "model", model)
        return made

    def with_source(self, source: Any) -> Self:
        """The same model of data beyond memory, told where its rows are.

        Parameters
        ----------
        source : path or other source
            The rows of the model, in any order; see :meth:`Posterior.with_source`.

        Returns
        -------
        LMM

        Raises
        ------
        DataError
            If the model has its rows in memory.
        FormulaError
            If the source lacks columns of the formula.
        """
        return self._of(self.model.with_source(source))

    def _repr_html_(self) -> str:
        return html_page(repr(self), self.priors.table(), ())

    def __repr__(self) -> str:
        lines = [
            model_name(self.design),
            f"Formula: {self.formula}",
            *residual_lines(self.design),
            groups_line(self.design),
            *design_notes(self.design),
            *contrast_notes(self.design),
        ]
        return "\n".join(lines)


def _checkpoint_file(path: str | PathLike[str]) -> CheckpointFile:
    from bayeslmm.storage.checkpoint import CheckpointFile

    return CheckpointFile(Path(path))
