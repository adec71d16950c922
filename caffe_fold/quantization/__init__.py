"""What integers would make of the weights: ranges of channels, and equalising them."""
