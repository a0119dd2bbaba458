"""Training: LightningModules, loss functions, and export to release files."""
