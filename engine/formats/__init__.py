"""One reader per file format: `list_tensors` reads headers only, `read_matrix` the weights."""
