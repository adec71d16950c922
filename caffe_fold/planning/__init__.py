"""Which fold goes where: what both files say of each layer, and the plan."""
