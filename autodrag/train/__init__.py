"""Training: thin LightningModules, pure losses, export to release files."""
