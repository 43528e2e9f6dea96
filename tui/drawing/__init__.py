"""Cells, colours and lines of a terminal."""
