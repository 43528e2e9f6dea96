"""Ranks for a budget of parameters: plans, made of spectra and kept as JSON."""
