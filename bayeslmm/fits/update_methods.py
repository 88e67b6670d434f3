"""Models made from other models and from fits: methods of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from numpy.typing import ArrayLike

from bayeslmm.data.design import Design
from bayeslmm.fits.estimate import Estimate
from bayeslmm.fits.posterior import Posterior
from bayeslmm.priors.record import Priors


@dataclass(frozen=True, eq=False, init=False, repr=False)
class ModelUpdate:
    """Values of a model, and models that differ from it; :class:`~bayeslmm.LMM` adds the fits."""

    design: Design
    priors: Priors

    @classmethod
    def from_fit(cls, fit: Posterior | Estimate, *, priors: Any = None) -> Self:
        """The model of a posterior or an estimate, such as one that was loaded.

        Parameters
        ----------
        fit : Posterior or Estimate
            What was fitted.
        priors : {"default", "flat"} or mapping, optional
            As in :meth:`update`. An estimate does not know priors: it gets the default ones, which
            REML and ML do not depend on. For a MAP estimate they must be given.

        Returns
        -------
        LMM

        Raises
        ------
        PriorError
            If the priors of a MAP estimate are not given.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> post = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).fit()
        >>> blm.LMM.from_fit(post).formula
        'Yield ~ 1 + (1 | Batch)'
        """
        from bayeslmm.storage.update import priors_of_fit

        old = fit.priors if isinstance(fit, Posterior) else None
        return cls._of(fit.design, priors_of_fit(old, fit.design, fit.method, priors))

    def update(
        self,
        formula: str | None = None,
        *,
        data: Any = None,
        priors: Literal["default", "flat"] | Mapping[str, Any] | None = None,
        weights: str | ArrayLike | Literal[False] | None = None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Self:
        """A changed model: what is not given stays as it is.

        Parameters
        ----------
        formula : str, optional
            A new formula or a change of the old one: a dot on the left stands for the old response,
            as a term on the right for the old right-hand side, and ``-`` takes terms out, as in
            ``"~ . - Days"`` and ``". ~ . - (Days | Subject) + (1 | Subject)"``.
        data : DataFrame, optional
            New data. By default those of the model, which keeps the rows it used and the variables
            of its formula.
        priors : {"default", "flat"} or mapping, optional
            Priors that were given for this model are kept, parameter by parameter, and the others
            computed from the new data. A mapping adds to them or, with None in place of a prior,
            takes one away. "default" and "flat" replace all.
        weights : str, array-like (n,) or False, optional
            New weights, of the rows of the new data or of those used; False for none. A column of
            weights is looked up in new data.
        functions : mapping of str to callable, optional
            Functions of your own that are new or replace those of the model.

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
        from bayeslmm.storage.update import updated_design, updated_priors

        design = updated_design(
            self.design, data=data, formula=formula, weights=weights, functions=functions
        )
        return self._of(design, updated_priors(self.priors, design, priors))

    @classmethod
    def _of(cls, design: Design, priors: Priors) -> Self:
        model = object.__new__(cls)
        object.__setattr__(model, "design", design)
        object.__setattr__(model, "priors", priors)
        return model
