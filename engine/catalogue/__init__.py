"""Tensor names and shapes -> the tree of projections. The families are data."""
