"""The reference of the command line, from the parser that reads it."""

import argparse
from unittest import mock

_MARK = "<!-- commands -->"


class _Caught(Exception):
    """Carries the parser that was about to read arguments."""


def on_page_markdown(markdown, page, config, files):
    """MkDocs calls it with the text of a page."""
    return markdown.replace(_MARK, commands()) if _MARK in markdown else markdown


def parser():
    """The parser that `main` would read arguments with, wherever it is built."""
    from centralflow_eqx.cli import main

    def caught(self, *_):
        raise _Caught(self)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", caught):
        try:
            main([])
        except _Caught as found:
            return found.args[0]
    raise RuntimeError("the command line does not read its arguments by argparse")


def commands():
    """What `--help` says, of the program and of each of its commands, in Markdown."""
    program = parser()
    (subparsers,) = (a for a in program._actions if isinstance(a, argparse._SubParsersAction))
    parts = [_help(program)]
    parts += [f"## {name}\n\n{_help(command)}" for name, command in subparsers.choices.items()]
    return "\n\n".join(parts)


def _help(command):
    wide = command.formatter_class  # as wide as the terminal, if nobody says how wide
    command.formatter_class = lambda prog: wide(prog, width=88, max_help_position=26)
    return f"```text\n{command.format_help().strip()}\n```"
