"""The ``run`` command up to the moment in which it serves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from calico_libnetwork.cli import run


def test_a_deprecated_variable_is_said_once_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []

    async def serve(settings: Any, **_: Any) -> None:
        served.append(settings.etcd_endpoints)

    monkeypatch.setattr(run, "_front", lambda: SimpleNamespace(serve=serve))
    monkeypatch.setattr("calico_libnetwork.log.configure", lambda **_: None)
    with capture_logs() as lines:
        CliRunner().invoke(run.run, [], env={"ETCD_AUTHORITY": "10.0.0.1:2379", "NODENAME": "host-a"})
    assert served == [("http://10.0.0.1:2379",)]
    assert [line["remark"] for line in lines] == [
        "ETCD_AUTHORITY is deprecated; set ETCD_ENDPOINTS=http://10.0.0.1:2379 instead"
    ]
