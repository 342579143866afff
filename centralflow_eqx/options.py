"""Option models, derived from the fields of the registered components."""

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PydanticUserError,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import (
    InitErrorDetails,
    PydanticCustomError,
    PydanticSerializationError,
    to_json,
)
from typing_extensions import Doc

from .errors import one_line
from .registry import Registry, SpecType

# Models have a field `type`, which hides the name in their annotations.
Class: TypeAlias = type
OptionModel: TypeAlias = "type[Options]"


@dataclasses.dataclass(frozen=True)
class Allowed:
    """Annotates a field with the words for its allowed values."""

    text: str


# A default that only the component can make; the spec is silent about it.
_OWN = object()


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

    component: ClassVar[Class]
    type: str

    @classmethod
    def suits(cls, component: Class) -> bool:
        """Whether the options of `component` may extend this model."""
        return True

    @classmethod
    def specialised(cls, given: Mapping[str, Any]) -> OptionModel:
        """The model for a section that says `given`, unchecked.

        Raises `OptionError` if there is none.
        """
        return cls

    def build(self) -> Any:
        """The component with these options."""
        names = [field.name for field in dataclasses.fields(self.component)]
        given = [name for name in names if name in type(self).model_fields]
        return self.component(**_arguments(self, given))


class Arguments(Section):
    """Arguments of a function or a class by name, checked by calling it."""

    _target: ClassVar[Callable[..., Any]]

    @model_validator(mode="after")
    def _accepted(self) -> "Arguments":
        arguments = _arguments(self, type(self).model_fields)
        reason = _refusal(type(self), arguments)
        if reason is None:
            return self
        words = {"name": type(self).__name__, "reason": reason}
        refused = PydanticCustomError("worded", "{name} refuses: {reason}", words)
        details = InitErrorDetails(
            type=refused, loc=_blamed(type(self), arguments, reason), input=None
        )
        raise ValidationError.from_exception_data(type(self).__name__, [details])


def derived(name: str, base: Any, doc: str | None = None, /, **fields: Any) -> Any:
    """`create_model`, without a search for docstrings in source code that does not exist."""
    written = {"use_attribute_docstrings": False}
    return create_model(name, __base__=base, __doc__=doc, __cls_kwargs__=written, **fields)


def arguments_field(name: str, target: Callable[..., Any], fields: dict[str, Any]) -> Any:
    """Definition of the field `args` for what `target`, shown as `name`, takes."""
    with warnings.catch_warnings(action="ignore"):  # a field may hide a method of pydantic's
        model = derived(name, Arguments, **fields)
    model._target = target
    keys = Allowed(f"a mapping with {', '.join(fields) or 'nothing in it'}")
    return Annotated[model, keys], Field({}, validate_default=True)


def _refusal(model: type[Arguments], arguments: dict[str, Any]) -> str | None:
    """What the target says against these arguments."""
    try:
        with warnings.catch_warnings(action="ignore"):  # building it will warn again
            model._target(**arguments)
    except Exception as error:  # whatever the user's or Optax's code raises
        return one_line(error)
    return None


def _blamed(model: type[Arguments], arguments: dict[str, Any], reason: str) -> tuple[str, ...]:
    """The argument without which the others are accepted, or the one that `reason` names."""
    optional = [name for name in arguments if not model.model_fields[name].is_required()]
    others = ({k: v for k, v in arguments.items() if k != name} for name in optional)
    tried = zip(optional, others, strict=True)
    without = [name for name, rest in tried if _refusal(model, rest) is None]
    named = [name for name in arguments if re.search(rf"\b{re.escape(name)}\b", reason)]
    for names in (without, named):
        if len(names) == 1:
            return (names[0],)
    return ()


def call(arguments: Arguments) -> Any:
    """What the function or class makes of its arguments."""
    return type(arguments)._target(**_arguments(arguments, type(arguments).model_fields))


def _arguments(model: BaseModel, names: Iterable[str]) -> dict[str, Any]:
    """The fields `names` of `model`, as a component takes them."""
    arguments = {}
    for name in names:
        value = vars(model)[name]
        if value is _OWN:
            continue
        for note in type(model).model_fields[name].metadata:
            value = note.convert(value) if isinstance(note, SpecType) else value
        arguments[name] = value
    return arguments


def option(hint: Any, default: Any = ...) -> tuple[Any, Any] | None:
    """The definition of a model's field; None if a spec cannot hold values of this type.

    A default that a spec cannot hold is left to the component.
    """
    notes = hint.__metadata__ if get_origin(hint) is Annotated else ()
    docs: dict[str, Any] = {}
    for note in notes:
        if isinstance(note, SpecType):
            hint = Annotated[note.type, note]
        elif isinstance(note, Doc):
            docs["description"] = note.documentation
    if not _holds(hint):
        return None
    if default is not ... and not _holds(hint, default):
        return hint, Field(_OWN, exclude_if=lambda value: value is _OWN, **docs)
    return hint, Field(default, **docs)


def _holds(hint: Any, *values: Any) -> bool:
    """Whether a spec can hold values of this type, and those given in particular."""
    if _components(hint):
        return False
    try:
        model = derived("Holder", Section, held=(hint, ...))
        model.model_json_schema()
        read = [model.model_validate_json(to_json({"held": value})) for value in values]
        return all(bool(vars(new)["held"] == old) for new, old in zip(read, values, strict=True))
    except (PydanticUserError, PydanticSerializationError, ValidationError):
        return False


def _components(hint: Any) -> bool:
    """Whether a type has members that hold fields of their own, as a module does."""
    parts = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
    return isinstance(hint, type) and dataclasses.is_dataclass(hint) or any(map(_components, parts))


def component_options(component: type) -> dict[str, Any]:
    """Definitions for `derived`, one per field of `component` that a spec can hold.

    Raises `TypeError` for a field that must be given and cannot be.
    """
    hints = get_type_hints(component, include_extras=True)
    options = {}
    for field in dataclasses.fields(component):
        default: Any = field.default
        if default is dataclasses.MISSING:
            factory = field.default_factory
            default = ... if factory is dataclasses.MISSING else factory()
        definition = option(hints[field.name], default) if field.init else None
        if definition is not None and not field.name.startswith("_"):
            options[field.name] = definition
        elif field.init and default is ...:
            raise TypeError(f"field '{field.name}' has no default and no type that a spec can hold")
    return options


@functools.cache
def option_model(component: type, name: str, base: type[Options] = Options) -> type[Options]:
    """The model of `component`'s options: `type: name`, one key per field, and those of `base`."""
    kind: dict[str, Any] = {"type": (Literal[name], ...)}
    fields = kind | component_options(component)
    summary = (component.__doc__ or "").strip().partition("\n")[0]
    model = derived(component.__name__, Options, summary, **fields)
    if base is not Options and base.suits(component):
        # of two bases the second one's fields come first
        model = derived(component.__name__, (base, model), summary, **kind)
    model.component = component
    return model


def options_of(registry: Registry, name: str) -> type[Options]:
    """The model of the options of a registered component."""
    base = registry.options_base or Options
    return registry.options(name) or option_model(registry[name], name, base)


@dataclasses.dataclass(frozen=True)
class Also:
    """Annotates a union with words for what else its `type` may be."""

    text: str


def any_of(registry: Registry) -> Any:
    """The type `A | B | ...` of the options of all components, told apart by `type`."""
    union = tuple(options_of(registry, name) for name in registry.names())
    if len(union) == 1:  # pydantic discriminates between two or more
        return union[0]
    also = Also(", or a class as module.Class") if registry.base else None
    return Annotated[Union[union], Field(discriminator="type"), also]  # noqa: UP007


def tag(model: type[BaseModel]) -> tuple[str, str | None]:
    """The key that tells a model of a union apart, and the key's value: ("type", "gd")."""
    key, field = next(iter(model.model_fields.items()))
    return key, next(iter(get_args(field.annotation)), None)
