"""What each type of layer computes: the affine ones and the linear ones."""
