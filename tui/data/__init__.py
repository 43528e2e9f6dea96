"""What the interface knows, without a widget: sessions, numbers, grid, selection, records."""
