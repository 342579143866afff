"""How annotations are checked while tests run: an int will do for a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
ROOMS = "data", "losses", "models", "optimizers", "task", "engine", "processes", "experiment"
PACKAGES = [f"centralflow_eqx.{room}" for room in ROOMS]
