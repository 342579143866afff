"""Option models, derived from the fields of the registered components."""

import dataclasses
import functools
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model
from typing_extensions import Doc

from ..registry import Registry, SpecType


class Section(BaseModel):
    """A mapping of the spec: known keys only, no conversion of types, no infinities."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class Options(Section):
    """The options of one registered component, by the names of its fields."""

    component: ClassVar[type]
    type: str

    def build(self) -> Any:
        """The component with these options."""
        options = self.model_dump()
        options.pop("type")
        return self.component(**options)


def _field(hint: Any, field: dataclasses.Field) -> tuple[Any, Any]:
    docs = {}
    if get_origin(hint) is Annotated:
        for note in hint.__metadata__:
            if isinstance(note, SpecType):
                hint = note.type
            elif isinstance(note, Doc):
                docs["description"] = note.documentation
    if field.default_factory is not dataclasses.MISSING:
        return hint, Field(default_factory=field.default_factory, **docs)
    default = ... if field.default is dataclasses.MISSING else field.default
    return hint, Field(default, **docs)


@functools.cache
def option_model(component: type, name: str) -> type[Options]:
    """The model of `component`'s options: `type: name` and one key per dataclass field."""
    hints = get_type_hints(component, include_extras=True)
    fields: dict[str, Any] = {"type": (Literal[name], ...)}
    fields |= {f.name: _field(hints[f.name], f) for f in dataclasses.fields(component) if f.init}
    summary = (component.__doc__ or "").strip().partition("\n")[0]
    model = create_model(component.__name__, __base__=Options, __doc__=summary, **fields)
    model.component = component
    return model


def any_of(registry: Registry) -> Any:
    """The type `A | B | ...` of the options of all components, told apart by `type`."""
    models = tuple(option_model(registry[name], name) for name in registry.names())
    if len(models) == 1:  # pydantic discriminates between two or more
        return models[0]
    return Annotated[Union[models], Field(discriminator="type")]  # noqa: UP007


def tag(model: type[BaseModel]) -> tuple[str, str | None]:
    """The key that tells a model of a union apart, and the key's value: ("type", "gd")."""
    key, field = next(iter(model.model_fields.items()))
    return key, next(iter(get_args(field.annotation)), None)
