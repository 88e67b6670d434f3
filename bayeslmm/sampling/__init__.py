"""Posteriors: the collapsed sampler, Laplace, PyMC and NUTS, diagnostics, joint draws."""
