"""The packed parts of a quantised matrix -> that matrix."""
