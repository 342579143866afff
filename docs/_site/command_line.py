"""The reference of the command line, from the parser that reads it."""

import argparse
import textwrap

_MARK = "<!-- commands -->"


def on_page_markdown(markdown, page, config, files):
    """MkDocs calls it with the text of a page."""
    return markdown.replace(_MARK, commands()) if _MARK in markdown else markdown


def commands():
    """What `--help` says, of the program and of each of its commands, in Markdown."""
    from centralflow_eqx.cli import _parser

    parser = _parser()
    (subparsers,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    pages = [_help(parser)]
    for name, command in subparsers.choices.items():
        pages.append(f"## {name}\n\n{_help(command)}")
    return "\n\n".join(pages)


def _help(parser):
    # An argparse help is as wide as the terminal.
    parser.formatter_class = _wide(parser.formatter_class)
    return f"```text\n{textwrap.dedent(parser.format_help()).rstrip()}\n```"


def _wide(formatter):
    return lambda prog: formatter(prog, width=88, max_help_position=26)
