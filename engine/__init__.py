"""What is computed: checkpoints, projections, singular values. Knows no screen and no HDF5."""
