"""The gate's exam on quantised bases: sound merges of every fp8 proxy, and faults that only they can have. `python -m exam.giants`."""
