"""fourstep: from a Stable Diffusion 3.5 checkpoint to packages that draw in four steps."""

__version__ = "0.1.0"
