"""Synth: full-size checkpoints of random weights, to measure memory, disk and speed with."""
