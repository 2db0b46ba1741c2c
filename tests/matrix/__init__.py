"""Family × feature: which cells are merged, and which are refused, each for a reason that stands in the table."""
