"""What every fit of a model shares: design, priors and what is computed from them once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from bayeslmm.data.design import Design, require_marginal
from bayeslmm.data.second_pass import gathered, with_source
from bayeslmm.estimation.estimate import Fit, fit_likelihood
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.priors.record import Priors


@dataclass(frozen=True, eq=False)
class Model:
    """A design and its priors, with cross-products and REML fit, computed when first needed.

    A model and all its fits and their copies hold the same one, so that what one of them has
    computed the others have. Pickles and copies leave what is computed behind.

    Attributes
    ----------
    design : Design
        Response, X, random effects and what was dropped.
    priors : Priors
        The priors.
    """

    design: Design
    priors: Priors

    @cached_property
    def system(self) -> Plan:
        """Cross-products of the data, all that likelihoods and samplers need of it.

        Raises
        ------
        DataError
            If residuals do not let the random effects be integrated out.
        """
        require_marginal(self.design, "The marginal density")
        return marginal_system(self.design)

    @cached_property
    def reml(self) -> Fit:
        """The REML fit.

        Raises
        ------
        NoEstimateError
            If the restricted likelihood has no maximum.
        """
        return fit_likelihood(self.system, "REML")

    def reml_or_none(self) -> Fit | None:
        """The REML fit; None where the likelihood has no maximum."""
        try:
            return self.reml
        except DataError:
            return None

    def with_priors(self, priors: Priors) -> Model:
        """The same design and cross-products under other priors."""
        other = Model(self.design, priors)
        if self.design.spec.conditional is None:
            other.__dict__.update(system=self.system)
        return other

    def with_source(self, data: Any) -> Model:
        """The same model, made of sums, whose rows can be read again."""
        other = Model(with_source(self.design, data), self.priors)
        for name in ("system", "reml"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other

    def gathered(self, what: str, instead: str) -> Model:
        """The same model with its rows in memory; see ``data.second_pass``.

        Itself where they are.
        """
        design = gathered(self.design, what, instead)
        return self if design is self.design else self.with_rows(design)

    def with_rows(self, design: Design) -> Model:
        """The same model and cross-products with rows that have these."""
        other = Model(design, self.priors)
        other.__dict__["system"] = self.system
        return other

    def __getstate__(self) -> dict[str, Any]:
        return field_values(self)


def field_values(value: Any) -> dict[str, Any]:
    """Values of the fields of a dataclass, its state without what it has computed from them.

    Cached properties can hold functions, which do not pickle, and are computed again where they are
    needed.
    """
    return {field.name: getattr(value, field.name) for field in fields(value)}
