"""The density of the data given the covariance parameters, from cross-products alone.

`crossprod` sums over the rows; `elimination` plans how the random effects are taken out of the
equations, with the algebra of `blocks`; `factorise` does it at one point and `batch` at many;
`marginal` and `log_posterior` read criteria and densities off the factor, `moments` and `draws` the
effects.

The *lead* is the grouping factor with the most random effects, which is eliminated level by level.
Grouping factors that it is nested in may follow as further *stages*; the rest is the *tail*, one
dense block. Levels of the lead that share their block of Z'Z are a *class* and eliminated
once. The *working basis*, in which X and each block of Z are orthonormal up to sqrt(n), is
for accuracy only and undone exactly. A *relative factor* is T with ``Sigma = sigma^2 T T'``.
"""
