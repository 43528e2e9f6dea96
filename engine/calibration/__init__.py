"""Second moments of what flows into projections, from files, imatrix and moments, and from models that run."""
