"""The Engine: computes spectra in threads or worker processes, saves them by a sink, and reports events."""
