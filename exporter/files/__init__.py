"""What every stop does with files: reads and digests them, writes folders whole or not at all."""
