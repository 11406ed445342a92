"""A page that draws in a browser, and its loop as an ES module for browsers and Node."""
