"""One widget a file. Widgets draw and report keys; they own no state of the model."""
