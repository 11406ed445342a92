"""One page about the packages of a folder: pictures, quality, bytes, sensitivity, times, memory.

find -> draw, each package in a process of its own -> compare -> page
"""
