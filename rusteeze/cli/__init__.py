"""The command line: one file a subcommand, imported only when that subcommand runs."""
