"""What the agent counts; ``felix_`` names of the same meaning have the same suffix."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_APPLY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class AgentMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.apply_time = Histogram(
            "calico_libnetwork_dataplane_apply_time_seconds",
            "Time from noticing changes to having them in the kernel.",
            buckets=_APPLY_BUCKETS,
            registry=registry,
        )
        self.failures = Counter(
            "calico_libnetwork_dataplane_failures", "Kernel changes that were refused.", registry=registry
        )
        self.endpoints = Gauge(
            "calico_libnetwork_active_local_endpoints", "Workload endpoints of this node in force.", registry=registry
        )
        self.findings = Gauge(
            "calico_libnetwork_unsupported_objects",
            "Objects with a part that is not enforced as written.",
            ["kind", "feature"],
            registry=registry,
        )
        self.unreadable = Gauge(
            "calico_libnetwork_unreadable_values", "Values in the datastore that nobody can read.", registry=registry
        )
