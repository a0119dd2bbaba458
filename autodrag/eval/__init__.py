"""Evaluation: the papers' protocols, and the baselines that they compare with."""
