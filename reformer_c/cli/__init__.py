"""The command line: the options, and one module for each command, which is imported to run it."""
