"""What a right merge must look like, worked out from base and adapter alone."""
