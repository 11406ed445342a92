"""Packages on their way: cut into chunks for stores, put together again, updated by differences."""
