"""Matrix -> singular values, each routine with its reach and its error bound."""
