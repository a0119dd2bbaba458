"""Other published methods, for comparison: FreeDrag and UserControllableLT."""
