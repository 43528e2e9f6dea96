"""What a user names -> a Checkpoint: a folder, a file, a Hub id, a URL, from headers alone."""
