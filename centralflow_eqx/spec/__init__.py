"""The experiment's specification: a YAML file, checked against the registered components."""

from .load import Plan, load_plan, load_spec
from .schema import Cluster, Options, Spec, json_schema
from .user_class import digest_code

__all__ = [
    "Cluster",
    "Options",
    "Plan",
    "Spec",
    "digest_code",
    "json_schema",
    "load_plan",
    "load_spec",
]
