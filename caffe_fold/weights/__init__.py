"""The weights: where each blob lies in a caffemodel or an HDF5 file."""
