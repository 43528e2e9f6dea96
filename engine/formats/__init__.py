"""One class a file format behind one protocol and one registry: headers are listed, weights read."""
