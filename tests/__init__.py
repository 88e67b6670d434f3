"""A package, for marginaleffects installs another of this name, which workers would import."""
