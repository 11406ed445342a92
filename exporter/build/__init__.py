"""The whole road from a checkpoint to packages."""
