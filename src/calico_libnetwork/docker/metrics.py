"""What is counted of Docker's calls."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 2, 5, 20)


class CallMetrics:
    """``observe`` is for ``Plugin.on_call``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "calico_libnetwork_docker_calls", "Calls from Docker.", ["method", "status"], registry=registry
        )
        self._time = Histogram(
            "calico_libnetwork_docker_call_seconds",
            "Time from a call's first byte to its answer.",
            ["method"],
            buckets=_BUCKETS,
            registry=registry,
        )

    def observe(self, method: str, status: int, seconds: float) -> None:
        self._calls.labels(method, status).inc()
        self._time.labels(method).observe(seconds)
