"""States are walked through in network namespaces, as in the system tests."""

from tests.system.conftest import namespace, workloads

__all__ = ["namespace", "workloads"]
