"""The Engine: queue, readers, workers, events."""
