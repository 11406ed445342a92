"""Stop 2, graphs: the network cut for a fixed schedule, on the ``meta`` device (no weights)."""
