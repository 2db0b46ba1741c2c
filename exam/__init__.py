"""The exam of the gate: merges that must be refused, and merges that must be accepted."""
