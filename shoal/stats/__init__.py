"""What can be said about runs: statistics, comparisons of runs, plots and reports."""
