"""A plan carried out: the new prototxt, the new weights, and the proof."""
