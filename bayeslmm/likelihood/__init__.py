"""The marginal likelihood: cross-products, factorisation, moments, draws, densities."""
