"""A model run from disk, unit by unit, in several versions of its weights."""
