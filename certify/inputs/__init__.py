"""What lies on disk, read by the gate's own readers. Every byte here may be hostile."""
