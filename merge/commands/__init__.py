"""What the command line offers, a file per group: options in, sentences and exit codes out."""
