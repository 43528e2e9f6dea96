"""Second moments of the inputs of projections: read from files (imatrix, moments), or measured on a running model."""
