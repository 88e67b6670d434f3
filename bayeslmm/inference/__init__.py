"""Estimates and samplers: REML, ML, MAP, profiles, Laplace, NUTS; diagnostics."""
