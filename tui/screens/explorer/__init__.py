"""The explorer's screen, in files for each thing it does."""
