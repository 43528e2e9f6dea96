"""Matrices that are computed from others: weighted, in the fixed gauge, products, stacks, differences."""
