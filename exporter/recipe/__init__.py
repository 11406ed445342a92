"""What to build: recipes and plans, files of TOML as frozen data."""
