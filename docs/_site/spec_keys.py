"""The reference of specs, from the models that check them."""

import re

from pydantic_core import to_json


def on_page_markdown(markdown, page, config, files):
    """MkDocs calls it with the text of a page."""
    for mark, made in MARKS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    return markdown


def keys():
    """The keys at the top of a spec, and those of its sections."""
    from centralflow_eqx.options import Section
    from centralflow_eqx.spec.schema import COMPONENTS, Spec, spec_model
    from centralflow_eqx.spec.wording import _models, _several

    fields = spec_model().model_fields
    own = {n: f for n, f in fields.items() if n not in COMPONENTS}
    sections = {name: _models(field.annotation) for name, field in own.items()}
    # Some keys are a mapping or, instead, a value.
    plain = {n: f for n, f in own.items() if not sections[n] or _several(f.annotation)}
    # What the registries say of a field replaces its definition, and with it the description.
    meanings = {name: field.description for name, field in Spec.model_fields.items()}
    parts = [_table(plain, meanings)]
    for name, models in sections.items():
        if models and issubclass(models[0], Section):
            parts += [f"### {name}", _text(models[0].__doc__), _table(models[0].model_fields)]
    return "\n\n".join(parts)


def components():
    """What `type` may be in the sections of components, with the options of each."""
    from centralflow_eqx.options import options_of
    from centralflow_eqx.spec.schema import COMPONENTS

    parts = []
    for section, registry in COMPONENTS.items():
        parts.append(f"### {section}")
        for name in registry.names():
            fields = dict(options_of(registry, name).model_fields)
            fields.pop("type")
            parts += [f"#### {section}: {name}", _text(registry.summary(name))]
            parts += [_table(fields)] * bool(fields)
    return "\n\n".join(parts)


def _table(fields, meanings=None):
    meanings = meanings or {name: field.description for name, field in fields.items()}
    rows = [f"| `{name}` | {_cells(field, meanings[name])} |" for name, field in fields.items()]
    head = "| key | value | default | meaning |\n| --- | --- | --- | --- |"
    return "\n".join([head, *rows])


def _cells(field, meaning):
    from centralflow_eqx.spec.wording import describe

    allowed = describe(field.annotation, tuple(field.metadata))
    words = (allowed, _default(field), _text(meaning or ""))
    return " | ".join(word.replace("|", "\\|") for word in words)


def _default(field):
    if field.is_required():
        return "required"
    if field.exclude_if is not None:  # only the component knows it
        return "its own"
    return f"`{to_json(field.get_default(call_default_factory=True)).decode()}`"


def _text(words):
    """One line, in which nothing is taken for Markdown but code."""
    line = " ".join(words.split())
    parts = line.split("`")
    parts[::2] = [re.sub(r"([*_<])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


MARKS = {"<!-- keys -->": keys, "<!-- components -->": components}
