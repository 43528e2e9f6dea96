"""Ranks for a budget of parameters, and the factors that are written in place of matrices."""
