"""Several runs from one spec: here one after the other, in worker processes, or on a cluster.

A sweep's folder has the run directories of its members, `sweep.yaml` with their names in order, and
`report.html`, which compares them. Members that run in processes of their own leave, beside their
run directories, the spec they ran (`<member>.yaml`) and their output (`<member>.log`, or below
`submitit/`).
"""

from .cluster import on_cluster, parse_settings
from .conductor import Backend, conduct
from .folder import all_runs, find_runs, is_run, is_sweep
from .local import end_with_stdin, in_this_process, in_workers

__all__ = [
    "Backend",
    "all_runs",
    "conduct",
    "end_with_stdin",
    "find_runs",
    "in_this_process",
    "in_workers",
    "is_run",
    "is_sweep",
    "on_cluster",
    "parse_settings",
]
