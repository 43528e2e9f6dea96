"""Second moments of what flows into projections, from files: imatrix and moments."""
