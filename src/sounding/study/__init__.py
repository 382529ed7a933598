"""Studies: all methods on all data, controls, statistics, the verdict and the report."""
