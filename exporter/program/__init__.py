"""Stop 3, trace: a graph becomes a program, which runs in torch and is what backends translate."""
