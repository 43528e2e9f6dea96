"""The explorer and the screens over it."""
