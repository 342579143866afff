"""On which devices a run takes place, and what of it lies on which of them.

Examples are shared out among the devices, and so can be what is as long as the weights; everything
else is on each of them. The compiler adds up what they find (`jax.sharding`, with shardings that it
propagates).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
Shard = Literal["examples", "weights", "both"]
"""What devices share out: examples, or vectors as long as the weights, such as eigenvectors."""

_COPIES, _PARTS = "copies", "parts"
"""Axes of the devices: vectors are split along the second, which is within a host."""


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
    """Devices that share a computation, and what they share out.

    Vectors as long as the weights are split into `parts`, 1 for none; so are blocks of them.
    """

    devices: tuple[Device, ...]
    shard: Shard = "examples"
    parts: int = 1

    @property
    def count(self) -> int:
        """How many devices there are."""
        return len(self.devices)

    @property
    def shares(self) -> int:
        """Into how many shares examples are split."""
        return 1 if self.shard == "weights" else self.count

    def of_weights(self, d: int) -> "Placement":
        """The same for `d` weights, split among as many devices of a host as divide them."""
        if self.shard == "examples":
            return self
        on_hosts = Counter(device.process_index for device in self.devices).values()
        return replace(self, parts=math.gcd(d, *on_hosts))

    def share(self, examples: np.ndarray) -> jax.Array:
        """An array whose first axis is split into the shares, whose number must divide it."""
        axes = () if self.shares == 1 else ((_COPIES, _PARTS),)
        return self._put(examples, self._sharding(*axes))

    def lay(self, tree: T, d: int) -> T:
        """The same arrays on the devices: split along an axis of length `d`, or each as a whole.

        Examples that are shared out already, and what else is there, stay as they are.
        """

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array | np.ndarray):
                return leaf
            if isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(self.devices):
                split = self.parts > 1 and d in leaf.shape
                return jax.device_put(leaf, self._sharding_of(leaf, d)) if split else leaf
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                data = jax.random.key_data(leaf)
                return jax.random.wrap_key_data(self._put(data, self._sharding()))
            return self._put(leaf, self._sharding_of(leaf, d))

        return jax.tree.map(place, tree)

    def whole(self, vector: jax.Array) -> jax.Array:
        """Within a program: a vector that may be split, on every device as a whole."""
        if self.parts == 1:
            return vector
        return jax.lax.with_sharding_constraint(vector, self._sharding())

    def laid(self, tree: T, d: int) -> T:
        """Within a program: what it returns lies as `lay` has it, if vectors are split."""
        if self.parts == 1:
            return tree

        def constrain(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array):
                return leaf
            return jax.lax.with_sharding_constraint(leaf, self._sharding_of(leaf, d))

        return jax.tree.map(constrain, tree)

    def _sharding_of(self, leaf: Any, d: int) -> NamedSharding:
        shape = np.shape(leaf)
        if self.parts == 1 or d not in shape:
            return self._sharding()
        return self._sharding(*(None,) * shape.index(d), _PARTS)

    def _sharding(self, *axes: Any) -> NamedSharding:
        grid = np.array(self.devices).reshape(-1, self.parts)
        return NamedSharding(Mesh(grid, (_COPIES, _PARTS)), PartitionSpec(*axes))

    def _put(self, array: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
        values = np.asarray(array)
        # Every process has all values; `device_put` would compare them.
        return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])


def place(wanted: Wanted, shard: Shard = "examples") -> Placement | None:
    """The devices that are meant; None where that is the one JAX chooses itself."""
    devices = choose_devices(wanted)
    return None if devices == jax.devices()[:1] else Placement(tuple(devices), shard)


def placement_of(array: jax.Array) -> Placement | None:
    """The devices that weights are on; None for the one that JAX chose itself."""
    if not array.committed:
        return None
    sharding = array.sharding
    if isinstance(sharding, NamedSharding):
        mesh: Any = sharding.mesh
        parts = mesh.shape.get(_PARTS, 1)
        return Placement(tuple(mesh.devices.flat), "examples" if parts == 1 else "both", parts)
    return Placement(tuple(sharding.device_set))


def to_host(array: jax.Array) -> np.ndarray:
    """All of an array, of whichever devices and hosts it is on.

    Every process has to call it, except for what each of them has all of, if in parts.
    """
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    own = {str(part.index): part for part in array.addressable_shards}
    if sum(part.data.size for part in own.values()) == array.size:
        values = np.empty(array.shape, array.dtype)
        for part in own.values():
            values[part.index] = part.data
        return values
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
