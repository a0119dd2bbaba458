"""The commands, one module each, with `arguments(parser)` and `run(args)`; importing one does not import torch."""
