"""The sub-commands. Each module has `arguments(parser)` and `run(args)`; importing one imports no torch."""
