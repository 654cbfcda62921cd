"""The command line of every tool: flags, exit codes, progress and tables."""
