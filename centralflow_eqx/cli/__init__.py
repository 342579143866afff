"""The command line: a module for each group of commands, and what they share.

`parser` makes the parser of all commands, `entry` runs one of them. A group has `add`, which
declares its commands, and a function for each; what these compute with is imported when they run.
"""

from .entry import main

__all__ = ["main"]
