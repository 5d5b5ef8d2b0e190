"""What the kernel shall hold, made from Calico's resources: pure, no I/O."""

from calico_libnetwork.dataplane.rules.endpoints import LocalEndpoint
from calico_libnetwork.dataplane.rules.ruleset import Ruleset
from calico_libnetwork.policy.settings import RulesSettings

__all__ = ["LocalEndpoint", "RulesSettings", "Ruleset"]
