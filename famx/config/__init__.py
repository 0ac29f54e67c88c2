"""Options: their schemas, the rules of the command line, and errors in one sentence."""
