"""What each layer of a net is, and what folding would do to it, before anything is written."""
