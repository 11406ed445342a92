"""Stop 1, checkpoint: whatever weights people have, opened by memory map, tensor by tensor."""
