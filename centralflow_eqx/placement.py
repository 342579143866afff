"""On which devices a run takes place, and what of it lies on which of them.

Examples are shared out among the devices, everything else is on each of them; the compiler adds up
what they find (`jax.sharding`, with shardings that it propagates).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .errors import OptionError

T = TypeVar("T")
Device = Any
"""One of `jax.devices()`."""
Wanted = Literal["auto", "all"] | int | Sequence[str]
"""Devices by their number or kinds; "auto": all accelerators, or else one CPU."""

_EXAMPLES = "examples"


def choose_devices(wanted: Wanted) -> list[Device]:
    """The devices that are meant; with several hosts the same on each of them.

    Kinds are platforms ("gpu", "cpu") or what devices call themselves ("NVIDIA H100"). Raises
    `OptionError` for the option `devices` if there are not so many, none of the kind, or a process
    of the run would have none.
    """
    chosen = _choose(wanted)
    idle = set(range(jax.process_count())) - {device.process_index for device in chosen}
    if idle:
        message = f"every process of a run needs one, {min(idle)} has none of these {len(chosen)}"
        raise OptionError("devices", message)
    return chosen


def _choose(wanted: Wanted) -> list[Device]:
    found = jax.devices()
    if wanted == "auto":
        return found if jax.default_backend() != "cpu" or jax.process_count() > 1 else found[:1]
    if wanted == "all":
        return found
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(found):
            there = f"{len(found)} of kind {found[0].device_kind}"
            raise OptionError("devices", f"there are {there}, not {wanted}")
        return found[:wanted]
    if isinstance(wanted, str) or not isinstance(wanted, Sequence) or not wanted:
        message = f'must be "auto", "all", a number, or kinds such as ["gpu"], got {wanted!r}'
        raise OptionError("devices", message)
    return list(dict.fromkeys(device for kind in wanted for device in _of_kind(kind)))


def _of_kind(kind: str) -> list[Device]:
    try:
        return jax.devices(kind)
    except RuntimeError:  # no platform
        named = [d for d in jax.devices() if kind.lower() in d.device_kind.lower()]
    if not named:
        there = ", ".join(sorted({d.device_kind for d in jax.devices()}))
        raise OptionError("devices", f"there are none of kind '{kind}', only {there}")
    return named


@dataclass(frozen=True)
class Placement:
    """Devices that share a computation."""

    devices: tuple[Device, ...]

    @property
    def count(self) -> int:
        """How many devices there are."""
        return len(self.devices)

    def share(self, examples: np.ndarray) -> jax.Array:
        """An array whose first axis is split among the devices, which must divide it."""
        return self._put(examples, _EXAMPLES)

    def copy(self, tree: T) -> T:
        """The same arrays, each as a whole on every device; those that are shared stay as is."""

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array | np.ndarray):
                return leaf
            if isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(self.devices):
                return leaf
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(self._put(jax.random.key_data(leaf)))
            return self._put(leaf)

        return jax.tree.map(place, tree)

    def _put(self, array: jax.Array | np.ndarray, *axes: str) -> jax.Array:
        mesh = Mesh(np.array(self.devices), (_EXAMPLES,))
        sharding, values = NamedSharding(mesh, PartitionSpec(*axes)), np.asarray(array)
        # Every process has all values; `device_put` would compare them.
        return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])


def place(wanted: Wanted) -> Placement | None:
    """The devices that are meant; None where that is the one JAX chooses itself."""
    devices = choose_devices(wanted)
    return None if devices == jax.devices()[:1] else Placement(tuple(devices))


def placement_of(array: jax.Array) -> Placement | None:
    """The devices that an array is on; None for the one that JAX chose itself."""
    if not array.committed:
        return None
    sharding = array.sharding
    if isinstance(sharding, NamedSharding):
        mesh: Any = sharding.mesh
        return Placement(tuple(mesh.devices.flat))
    return Placement(tuple(sharding.device_set))


def to_host(array: jax.Array) -> np.ndarray:
    """All of an array, of whichever devices and hosts it is on."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
