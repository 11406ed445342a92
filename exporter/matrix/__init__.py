"""Many packages by one file: jobs on this machine, on Dask, or in a CI's own matrix."""
