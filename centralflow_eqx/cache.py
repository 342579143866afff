"""Compiled programs that outlive the process."""

import os
from pathlib import Path

import jax

SWITCH = "CENTRALFLOW_CACHE"


def keep_programs() -> None:
    """Let JAX keep what it compiles in the user's cache folder, unless told otherwise.

    `CENTRALFLOW_CACHE` names another folder, or is "off"; what `JAX_COMPILATION_CACHE_DIR` says
    stands. A cache that cannot be read or written costs time, never the run.
    """
    chosen = os.environ.get(SWITCH, "")
    named_already = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if named_already or chosen.lower() in ("off", "0", "no", "false"):
        return
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(chosen) if chosen else Path(base) / "centralflow_eqx" / "programs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs are many, and compiling them adds up.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_raise_persistent_cache_errors", False)
