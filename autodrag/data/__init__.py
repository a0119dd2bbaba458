"""Training data: rendered critters, noised latents and motion sequences."""
