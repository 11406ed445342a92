"""What a graph will take before it is built: bytes of files, memory to write it and to run it."""
