"""The subcommands: each a module with `HELP`, `define(flags)` and `run(flags)`, nothing else."""
