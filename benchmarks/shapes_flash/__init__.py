"""shapes-flash: a small SD3.5-architecture model that draws what a simple prompt says."""
