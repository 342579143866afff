"""The user's own code: classes and functions that a spec names and this process imports."""

import contextlib
import functools
import hashlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Optional

from annotated_types import MinLen
from pydantic import StringConstraints, WithJsonSchema

from ..errors import OptionError, did_you_mean, one_line, show
from ..options import (
    Allowed,
    Options,
    Section,
    arguments_field,
    call,
    component_options,
    derived,
)
from ..registry import InputFolder, Registry, absolute_path

_DOTTED = r"^[^\W\d]\w*(\.[^\W\d]\w*)+$"
_FUNCTION = "the dotted name of a function, such as module.function"

# Where this module loaded which top-level modules from, other than Python's own path.
_loaded: dict[str, Path] = {}


class ClassOptions(Options):
    """A class of your own by its dotted name; its module is imported, which runs its code."""

    type: Annotated[str, StringConstraints(pattern=_DOTTED)]
    """package.module.Class, or module.Class for a module beside the spec."""
    args: Annotated[Any, WithJsonSchema({"type": "object"})] = {}
    """The class's fields by name."""
    folder: InputFolder | None = None
    """Folder to import from; null: the spec's own, the working directory, then Python's path."""

    def build(self) -> Any:
        return call(self.args)


def class_options(registry: Registry, given: Mapping[str, Any], folder: Path) -> type[ClassOptions]:
    """The option model for a section whose `type` is a dotted name.

    `folder` is the spec's. The model's `folder` defaults to where the module was found, so that
    a resolved spec finds it from anywhere. Raises `OptionError` for the option `type`.
    """
    name = given["type"]
    if not re.fullmatch(_DOTTED, name):
        raise OptionError("type", f"must be a dotted name such as module.Class, got {show(name)}")
    component, found = _import_named(name, _folders(given, folder), registry.base)
    _check(name, component, registry.base)
    try:
        args = arguments_field(component.__name__, component, component_options(component))
    except Exception as error:  # whatever its annotations evaluate to
        message = f"the fields of {name} are no options of a spec: {one_line(error)}"
        raise OptionError("type", message) from None
    own: dict[str, Any] = {
        "type": (Literal[name], ...),
        "args": args,
        "folder": (Optional[InputFolder], found),  # noqa: UP045
    }
    return derived(component.__name__, ClassOptions, **own)


class FunctionOptions(Section):
    """A loss of your own on a flat vector of weights, in place of data, model and loss.

    Its module is imported, which runs its code.
    """

    function: Annotated[str, StringConstraints(pattern=_DOTTED), Allowed(_FUNCTION)]
    """module.function for a module beside the spec, or package.module.function: it takes weights
    [d] and gives a number, three times differentiable."""
    start: Annotated[tuple[float, ...], MinLen(1)]
    """The weights [d] that everything starts from."""
    args: Annotated[dict[str, Any], Allowed("a mapping of arguments by name")] = {}
    """Further arguments of the function, by name."""
    folder: InputFolder | None = None
    """Folder to import from; null: the spec's own, the working directory, then Python's path."""

    _loss: ClassVar[Callable[..., Any]]

    def build(self) -> Callable[..., Any]:
        """The loss as a function of the weights alone."""
        return functools.partial(self._loss, **self.args) if self.args else self._loss


def function_options(given: Mapping[str, Any], folder: Path) -> type[FunctionOptions]:
    """The option model for a task whose `function` is a dotted name; see `class_options`.

    Raises `OptionError` for the options `function` and `args`.
    """
    name, args = given["function"], given.get("args", {})
    if not re.fullmatch(_DOTTED, name):
        raise OptionError("function", f"must be {_FUNCTION}, got {show(name)}")
    try:
        loss, found = _import_named(name, _folders(given, folder))
    except OptionError as error:
        raise OptionError("function", error.message) from None
    if not callable(loss) or isinstance(loss, type):
        raise OptionError("function", f"{name} is no function")
    if isinstance(args, dict):
        try:
            inspect.signature(loss).bind(None, **args)
        except ValueError:  # a function in C that does not tell; calling it will
            pass
        except TypeError as error:
            raise OptionError("args", f"{name} refuses: {error}") from None
    own = {"folder": (Optional[InputFolder], found)}  # noqa: UP045
    model = derived("Function", FunctionOptions, **own)
    model._loss = staticmethod(loss)
    return model


def digest_code(names: Iterable[str]) -> str:
    """What tells apart the code of the user's own modules that dotted `names` are of.

    Those that they import count too, as far as they lie in the user's folders. Empty without any.
    """
    found, wanted = set(), {name.partition(".")[0] for name in names} & _loaded.keys()
    while wanted:
        found |= wanted
        modules = [sys.modules[m] for m in list(sys.modules) if m.partition(".")[0] in wanted]
        used = (x for module in modules for x in list(vars(module).values()))
        tops = {str(getattr(x, "__module__", getattr(x, "__name__", ""))) for x in used}
        wanted = ({top.partition(".")[0] for top in tops} & _loaded.keys()) - found
    code = hashlib.blake2b()
    for name in sorted(m for m in sys.modules if m.partition(".")[0] in found):
        path = getattr(sys.modules[name], "__file__", None)
        if path and os.path.isfile(path):
            code.update(f"{name} ".encode() + Path(path).read_bytes())
    return code.hexdigest() if found else ""


def _folders(given: Mapping[str, Any], folder: Path) -> list[Path]:
    """Where to import from, for a section of a spec in `folder`."""
    chosen = given.get("folder")
    if isinstance(chosen, str):
        return [absolute_path(folder, chosen)]
    return [folder, Path.cwd()]


def _import_named(
    name: str, folders: list[Path], base: type | None = None
) -> tuple[Any, Path | None]:
    """What `name` names, and which of `folders` it comes from, if it does.

    Raises `OptionError` for the option `type`, with the name that was meant: of classes of `base`,
    or of functions without one.
    """
    module_name, _, attribute = name.rpartition(".")
    real = {Path(os.path.realpath(folder)): folder for folder in reversed(folders)}
    with _importable_from(folders):
        home = _make_way(module_name.partition(".")[0], real)
        before = set(sys.modules)
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise OptionError("type", _failure(module_name, error, folders)) from None
        finally:
            for new in set(sys.modules) - before:
                there = _home(getattr(sys.modules[new], "__spec__", None))
                if "." not in new and there in real:
                    _loaded[new] = there
    if not hasattr(module, attribute):
        kind = "class" if base else "function"
        there = [n for n, found in vars(module).items() if _is_kind(found, base)]
        near = did_you_mean(attribute, there)
        raise OptionError("type", f"module '{module_name}' has no {kind} '{attribute}'{near}")
    return getattr(module, attribute), real.get(home) if home else None


def _is_kind(found: Any, base: type | None) -> bool:
    if base is None:
        return inspect.isfunction(found)
    return isinstance(found, type) and issubclass(found, base)


@contextlib.contextmanager
def _importable_from(folders: list[Path]) -> Iterator[None]:
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in added:
            with contextlib.suppress(ValueError):  # the user's code may have changed the path
                sys.path.remove(folder)


def _home(found: ModuleSpec | None) -> Path | None:
    """The folder that a top-level module or package lies in."""
    if found is None:
        return None
    place = next(iter(found.submodule_search_locations or ()), found.origin)
    return Path(os.path.realpath(place)).parent if place else None


def _make_way(top: str, own: Iterable[Path]) -> Path | None:
    """Forget what specs of other folders loaded; returns the folder that `top` will come from.

    Python loads one module of a name: another folder's would be taken for this one's.
    """
    home = _home(PathFinder.find_spec(top))
    for name, there in list(_loaded.items()):
        if there not in own or (name == top and there != home):
            del _loaded[name]
            for module in [m for m in sys.modules if f"{m}.".startswith(f"{name}.")]:
                del sys.modules[module]
    there = _home(getattr(sys.modules.get(top), "__spec__", None))
    if home and home in own and there and there != home:
        message = f"a module '{top}' from {there} is in use already; rename the one in {home}"
        raise OptionError("type", message)
    return home


def _failure(module: str, error: BaseException, folders: list[Path]) -> str:
    """Why an import failed."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{module}.".startswith(f"{missing}."):
        there = filter(os.path.isdir, folders)
        beside = [path.stem for folder in there for path in folder.glob("*.py")]
        places = ", ".join(map(str, dict.fromkeys(folders)))
        near = did_you_mean(missing, beside) if "." not in missing else ""
        return f"no module '{missing}' in {places} or on Python's path{near}"
    if isinstance(error, SyntaxError):
        place, said = (error.filename, error.lineno), f"{type(error).__name__}: {error.msg}"
    else:
        lines = [f for f in traceback.extract_tb(error.__traceback__) if f.name == "<module>"]
        place = (lines[-1].filename, lines[-1].lineno) if lines else (None, None)
        said = one_line(error)
    where = " ({}:{})".format(*place) if place[0] else ""
    return f"importing '{module}' raises {said}{where}"


def _check(name: str, component: Any, base: Any) -> None:
    """Raise `OptionError` unless `component` is a class that can be a component."""
    if not isinstance(component, type):
        hint = "; for Optax write type: optax and its name" if name.startswith("optax.") else ""
        raise OptionError("type", f"{name} is no class{hint}")
    if not issubclass(component, base):
        module = base.__module__.partition("._")[0]
        raise OptionError("type", f"{name} must be a subclass of {module}.{base.__name__}")
    kinds = ("__abstractmethods__", "__abstractvars__", "__abstractclassvars__")
    lacking = sorted(member for kind in kinds for member in getattr(component, kind, ()))
    if lacking:
        raise OptionError("type", f"{name} is abstract, it lacks {', '.join(lacking)}")
