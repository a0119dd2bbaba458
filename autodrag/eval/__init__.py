"""Experiment: the papers' protocols and the baselines they compare with."""
