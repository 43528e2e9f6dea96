"""A request -> curves and axes -> lines of a terminal, or paper."""
