"""Programs that produced the numbers in the docs, recipes and README; run as `python -m experiments.NAME`."""
