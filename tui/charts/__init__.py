"""Charts: a request becomes curves and axes, and these become lines of a terminal or a picture."""
