"""Pages that need no other file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from ._chart import Drawing
from .narrative import percent


@dataclass(frozen=True)
class Figure:
    """A figure on a page: `name` is that of its files, `division` its HTML."""

    name: str
    title: str
    caption: str
    division: Markup


def figures(about: Iterable[tuple[str, str, str]], drawings: Mapping[str, Drawing]) -> list[Figure]:
    """The figures that were drawn, of all that can be, each (name, title, caption)."""
    from ._interactive import division  # a run need not wait for plotly

    return [
        Figure(name, title, caption, Markup(division(drawings[name], name)))
        for name, title, caption in about
        if name in drawings
    ]


def render(template: str, **content: Any) -> str:
    """A page made of `template` with the script that its figures need."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from ._interactive import library

    environment = Environment(
        loader=PackageLoader("centralflow_eqx", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: "" if np.isnan(share) else percent(share)
    page = environment.get_template(template)
    return page.render(library=Markup(library()), **content)
