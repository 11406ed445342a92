"""A package's format: what its manifest says, names, checks, previews, measures. No torch."""
