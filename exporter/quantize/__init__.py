"""Stop 4, quantize: weights become codes and scales inside the program, before any backend."""
