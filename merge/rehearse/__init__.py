"""Try a merge on a shrunken twin of a real base and a real adapter, and say what the real one will take."""
