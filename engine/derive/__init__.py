"""Matrices made of others."""
