"""``python -m exporter`` is ``fourstep``."""

from exporter.cli import main

if __name__ == "__main__":
    main()
