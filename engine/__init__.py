"""From checkpoints to projections to singular values. Imports neither screens nor HDF5."""
