"""Covariance parameters: their structures, coordinates and places.

`structure.Structure` says what a covariance structure is, one class a file fulfils it.
`coordinates.Coordinates` is the vector that samplers move, of log standard deviations and
correlation coordinates of *working columns*, the columns about which priors speak;
`coordinates.Theta` is the one in which likelihoods are maximised, entries of relative factors in
the working basis, where a singular fit is an ordinary point.
"""
