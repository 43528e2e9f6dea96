"""The stored results: spectra in immutable HDF5 files. The only room that imports h5py."""
