"""Opening a folder, a file, a Hub id or a URL by its headers -> Checkpoint."""
