"""The explorer, by what its parts do."""
