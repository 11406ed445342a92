"""Packages as projects in the languages of devices, that build and draw."""
