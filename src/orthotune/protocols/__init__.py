"""Benchmark protocols: each is one YAML file that says which tasks, splits, schedule, metric and grids it has."""

from orthotune.protocols.protocol import Protocol, Task, load_protocol, protocol_names

__all__ = ["Protocol", "Task", "load_protocol", "protocol_names"]
