"""A cache that machines share: records by what decides them, and files by their digest."""
