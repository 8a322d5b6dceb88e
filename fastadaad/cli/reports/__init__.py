"""Reports on the folders of runs and comparisons: their state, and pages in HTML."""
