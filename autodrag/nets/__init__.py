"""Networks, one per file, independent of losses, optimisers, files and devices."""
