"""One file per scheme; the file's name is the scheme's name, its ``SCHEME`` the data."""
