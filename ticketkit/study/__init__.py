"""Studies: a declared grid of runs over many seeds, the statistics that say what they show, and the report."""
