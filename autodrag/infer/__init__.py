"""Inference: motion supervision, tracking, the refiner and the editor object."""
