"""What a model meets on its own trajectories, and the codes and ranges chosen by it."""
