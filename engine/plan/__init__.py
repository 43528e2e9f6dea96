"""Ranks for a budget of parameters, and the factors that are written in the place of matrices."""
