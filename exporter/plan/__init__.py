"""A format for every weight: the road to a plan."""
