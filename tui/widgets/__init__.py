"""Widgets, one in each file. They draw and report keys, and hold no state of the model."""
