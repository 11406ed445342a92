"""Runs ML Programs where Core ML is missing."""
