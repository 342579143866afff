"""What the writer and the reader of `data.h5` share."""

from typing import cast

import h5py


def dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """A member of `group` that is known to be a dataset, as a type checker cannot know."""
    return cast(h5py.Dataset, group[name])
