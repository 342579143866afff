"""The experiment's specification: a YAML file, checked against the registered components."""

from .load import Plan, load_plan, load_spec
from .schema import Options, Spec, json_schema

__all__ = ["Options", "Plan", "Spec", "json_schema", "load_plan", "load_spec"]
