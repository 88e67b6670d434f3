"""Estimates: REML, ML, MAP, profiles, the bootstrap."""
