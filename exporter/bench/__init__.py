"""How fast packages draw, and in how much memory."""
