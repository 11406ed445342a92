"""Packages that were built once and must open in every later version, and what built them."""
