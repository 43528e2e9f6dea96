"""The data behind the interface, without widgets: sessions, numbers, grid, selection, records."""
