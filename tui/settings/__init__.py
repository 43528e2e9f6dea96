"""What a user may set: thresholds, lines, keys, colours."""
