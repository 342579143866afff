"""How annotations are checked while tests run: an int will do for a float."""

from pathlib import Path

from beartype import BeartypeConf, beartype

import centralflow_eqx

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

_ROOMS = "data", "losses", "models", "optimizers", "task", "engine", "processes", "experiment"
# What tells users what they got wrong has to see it first.
_OWN_CHECKS = (
    "data._base",
    "engine.complementarity",
    "engine.settings",
    "optimizers.optax_rule",
    "experiment.progress",
    "experiment.arguments",
    "experiment.sensitivity",
    "experiment.simulate",
    "experiment.start",
)


def modules():
    """All that compute, by name."""
    root = Path(centralflow_eqx.__file__).parent
    files = [file for room in _ROOMS for file in (root / room).rglob("*.py")]
    names = [".".join(file.relative_to(root).with_suffix("").parts) for file in files]
    names = [name for name in names if not name.endswith("__init__") and name not in _OWN_CHECKS]
    return [f"centralflow_eqx.{name}" for name in names]
