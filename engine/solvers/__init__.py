"""Solvers: matrix -> singular values, each with the condition numbers that it can handle and its error bound."""
