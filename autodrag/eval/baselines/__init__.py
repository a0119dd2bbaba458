"""Baselines: the published methods FreeDrag and UserControllableLT."""
