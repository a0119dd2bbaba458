"""Training data: the critters renderer, noised latents, motion sequences."""
