"""What a methods section cites."""

from __future__ import annotations

from collections.abc import Sequence

CITATIONS = {
    "lmm": (
        "Bates, Mächler, Bolker, Walker (2015). Fitting linear mixed-effects models using lme4. "
        "Journal of Statistical Software 67(1). doi:10.18637/jss.v067.i01"
    ),
    "reml": (
        "Patterson, Thompson (1971). Recovery of inter-block information when block sizes are "
        "unequal. Biometrika 58, 545-554. doi:10.1093/biomet/58.3.545"
    ),
    "satterthwaite": (
        "Kuznetsova, Brockhoff, Christensen (2017). lmerTest package: tests in linear mixed "
        "effects models. Journal of Statistical Software 82(13). doi:10.18637/jss.v082.i13"
    ),
    "lkj": (
        "Lewandowski, Kurowicka, Joe (2009). Generating random correlation matrices based on vines "
        "and extended onion method. Journal of Multivariate Analysis 100, 1989-2001. "
        "doi:10.1016/j.jmva.2009.04.008"
    ),
    "half_t": (
        "Gelman (2006). Prior distributions for variance parameters in hierarchical models. "
        "Bayesian Analysis 1, 515-534. doi:10.1214/06-BA117A"
    ),
    "independence": (
        "Tierney (1994). Markov chains for exploring posterior distributions. Annals of Statistics "
        "22, 1701-1728. doi:10.1214/aos/1176325750"
    ),
    "laplace": (
        "Tierney, Kadane (1986). Accurate approximations for posterior moments and marginal "
        "densities. Journal of the American Statistical Association 81, 82-86. "
        "doi:10.1080/01621459.1986.10478240"
    ),
    "nuts": (
        "Hoffman, Gelman (2014). The No-U-Turn sampler. Journal of Machine Learning Research 15, "
        "1593-1623. https://jmlr.org/papers/v15/hoffman14a.html"
    ),
    "pymc": (
        "Abril-Pla et al. (2023). PyMC: a modern and comprehensive probabilistic programming "
        "framework in Python. PeerJ Computer Science 9, e1516. doi:10.7717/peerj-cs.1516"
    ),
    "psis": (
        "Vehtari, Simpson, Gelman, Yao, Gabry (2024). Pareto smoothed importance sampling. Journal "
        "of Machine Learning Research 25(72). https://jmlr.org/papers/v25/19-556.html"
    ),
    "rhat": (
        "Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021). Rank-normalization, folding, and "
        "localization: an improved R-hat. Bayesian Analysis 16, 667-718. doi:10.1214/20-BA1221"
    ),
}
"""References by what they are cited for."""


def with_references(paragraph: str, keys: Sequence[str]) -> str:
    """Paragraph followed by the references in alphabetical order."""
    lines = sorted(CITATIONS[key] for key in keys)
    return "\n\n".join([paragraph, "References", *lines])
