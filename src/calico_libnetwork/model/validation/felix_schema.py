"""Felix's and kube-controllers' settings, as Calico's schema has them: names, types and allowed values.

The table has one setting a line, in the order in which Calico stores them: its name, its type and what that takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calico_libnetwork.model import defaults
from calico_libnetwork.model.validation import formats
from calico_libnetwork.model.validation.fields import (
    Boolean,
    Field,
    Integer,
    ListOf,
    Object,
    Text,
    TextMap,
    words,
    words_in_any_case,
    words_or_none,
)
from calico_libnetwork.model.validation.problems import Report

Fields = dict[str, Any]

_SETTINGS = """
useInternalDataplaneDriver flag
dataplaneDriver text
dataplaneWatchdogTimeout duration
ipv6Support flag
routeRefreshInterval duration
interfaceRefreshInterval duration
iptablesRefreshInterval duration
iptablesPostWriteCheckInterval duration
iptablesLockFilePath text
iptablesLockTimeout duration
iptablesLockProbeInterval duration
featureDetectOverride pairs
featureGates pairs
ipsetsRefreshInterval duration
maxIpsetSize number
iptablesBackend word* Auto Legacy NFT
xdpRefreshInterval duration
netlinkTimeout duration
metadataAddr text
metadataPort number
openstackRegion text
interfacePrefix text
interfaceExclude text
chainInsertMode anycase Insert Append
defaultEndpointToHostAction word Drop Accept Return
iptablesFilterAllowAction word Accept Return
iptablesMangleAllowAction word Accept Return
iptablesFilterDenyAction word Drop Reject
logPrefix text
logActionRateLimit text
logActionRateLimitBurst number 0
logFilePath text
logSeverityFile word Trace Debug Info Warning Error Fatal
logSeverityScreen word Trace Debug Info Warning Error Fatal
logSeveritySys word Trace Debug Info Warning Error Fatal
logDebugFilenameRegex expression
ipipEnabled flag
ipipMTU number
vxlanEnabled flag
vxlanMTU number
vxlanMTUV6 number
vxlanPort number
vxlanVNI number
allowVXLANPacketsFromWorkloads flag
allowIPIPPacketsFromWorkloads flag
reportingInterval duration
reportingTTL duration
endpointReportingEnabled flag
endpointReportingDelay duration
endpointStatusPathPrefix text
iptablesMarkMask number 0 4294967295
disableConntrackInvalidCheck flag
healthEnabled flag
healthHost text*
healthPort number
healthTimeoutOverrides overrides
prometheusMetricsEnabled flag
prometheusMetricsHost text
prometheusMetricsPort number
prometheusMetricsCAFile text
prometheusMetricsCertFile text
prometheusMetricsKeyFile text
prometheusMetricsClientAuth text
prometheusGoMetricsEnabled flag
prometheusProcessMetricsEnabled flag
prometheusWireGuardMetricsEnabled flag
failsafeInboundHostPorts failsafe
failsafeOutboundHostPorts failsafe
kubeNodePortRanges ports
policySyncPathPrefix text
usageReportingEnabled flag
usageReportingInitialDelay duration
usageReportingInterval duration
natPortRange port
natOutgoingAddress address4
natOutgoingExclusions words IPPoolsOnly IPPoolsAndHostIPs
deviceRouteSourceAddress address4
deviceRouteSourceAddressIPv6 address6
deviceRouteProtocol number
removeExternalRoutes flag
ipv4NormalRoutePriority number 1 2147483646
ipv4ElevatedRoutePriority number 1 2147483646
ipv6NormalRoutePriority number 1 2147483646
ipv6ElevatedRoutePriority number 1 2147483646
liveMigrationRouteConvergenceTime duration
programClusterRoutes words Enabled Disabled
ipForwarding words Enabled Disabled
externalNodesList networks4
debugMemoryProfilePath text
debugDisableLogDropping flag
debugSimulateCalcGraphHangAfter duration
debugSimulateDataplaneHangAfter duration
debugSimulateDataplaneApplyDelay duration
debugHost text*
debugPort number 0 65535
iptablesNATOutgoingInterfaceFilter filter
sidecarAccelerationEnabled flag
xdpEnabled flag
genericXDPEnabled flag
nftablesMode words Disabled Enabled Auto
nftablesFlowTableOffload words Disabled Enabled All
nftablesRefreshInterval duration
nftablesFilterAllowAction word Accept Return
nftablesMangleAllowAction word Accept Return
nftablesFilterDenyAction word Drop Reject
nftablesMarkMask number 0 4294967295
bpfEnabled flag
bpfDisableUnprivileged flag
bpfJITHardening words Auto Strict
bpfLogLevel word* Off Info Debug
bpfConntrackLogLevel words Off Debug
bpfConntrackMode words Auto Userspace BPFProgram
bpfConntrackTimeouts timeouts
bpfLogFilters map
bpfCTLBLogFilter text
bpfDataIfacePattern expression
bpfL3IfacePattern expression
bpfConnectTimeLoadBalancingEnabled flag
bpfConnectTimeLoadBalancing words TCP Enabled Disabled
bpfHostNetworkedNATWithoutCTLB words Enabled Disabled
bpfExternalServiceMode word Tunnel DSR
bpfDSROptoutCIDRs networks
bpfExtToServiceConnmark number 0 4294967295
bpfKubeProxyIptablesCleanupEnabled flag
bpfKubeProxyMinSyncPeriod duration
bpfKubeProxyHealthzPort number 0 65535
bpfKubeProxyEndpointSlicesEnabled flag
bpfPSNATPorts port
bpfMapSizeNATFrontend number
bpfMapSizeNATBackend number
bpfMapSizeNATAffinity number
bpfMapSizeRoute number
bpfMapSizeConntrack number
bpfMapSizePerCpuConntrack number
bpfMapSizeConntrackScaling anycase Disabled DoubleIfFull
bpfMapSizeConntrackCleanupQueue number 1
bpfMapSizeIPSets number
bpfMapSizeIfState number
bpfMaglevMaxEndpointsPerService number 1 3000
bpfMaglevMaxServices number 1 3000
bpfHostConntrackBypass flag
bpfEnforceRPF anycase Disabled Strict Loose
bpfPolicyDebugEnabled flag
bpfForceTrackPacketsFromIfaces filters
bpfDisableGROForIfaces expression
bpfExcludeCIDRsFromNAT networks
bpfExportBufferSizeMB number
bpfAttachType words TC TCX
flowLogsPolicyEvaluationMode words None Continuous
bpfRedirectToPeer words Enabled Disabled L2Only
flowLogsFlushInterval duration
flowLogsCollectorDebugTrace flag
flowLogsGoldmaneServer text*
flowLogsLocalReporter words Disabled Enabled
bpfProfiling words Enabled Disabled
cgroupV2Path text
routeSource anycase WorkloadIPs CalicoIPAM
routeTableRanges tables
routeTableRange table
routeSyncDisabled flag
wireguardEnabled flag
wireguardEnabledV6 flag
wireguardThreadingEnabled flag
wireguardListeningPort number 1 65535
wireguardListeningPortV6 number 1 65535
wireguardRoutingRulePriority number 1 32765
wireguardInterfaceName interface
wireguardInterfaceNameV6 interface
wireguardMTU number
wireguardMTUV6 number
wireguardHostEncryptionEnabled flag
wireguardKeepAlive duration
awsSrcDstCheck words DoNothing Enable Disable
serviceLoopPrevention word Drop Reject Disabled
workloadSourceSpoofing word Disabled Any
mtuIfacePattern expression
floatingIPs words Enabled Disabled
windowsManageFirewallRules words Enabled Disabled
istioAmbientMode words Enabled Disabled
istioDSCPMark number 0 63
goGCThreshold number -1
goMemoryLimitMB number -1
goMaxProcs number -1
requireMTUFile flag
"""

_DURATION = Text(
    "a duration such as 90s or 1m30s",
    lambda text: (formats.parse_duration(text) or 0) >= 0 and formats.parse_duration(text) is not None,
    stored=formats.DURATION.stored,
)
_PAIRS = Text(
    "a comma list of name=value",
    lambda text: all("=" in pair for pair in text.split(",") if pair),
)
_TIMEOUT = Text("a duration or Auto", lambda text: text == "Auto" or formats.parse_duration(text) is not None)
_TIMEOUTS = Object(
    *(
        Field(name, _TIMEOUT, kept=True)
        for name in (
            "creationGracePeriod",
            "tcpSynSent",
            "tcpEstablished",
            "tcpFinsSeen",
            "tcpResetSeen",
            "udpTimeout",
            "genericTimeout",
            "icmpTimeout",
        )
    )
)
_FAILSAFE = ListOf(
    Object(
        Field("protocol", words_in_any_case("TCP", "UDP", "SCTP")),
        Field("port", Integer(0, 65535), kept=True, required="must be given"),
        Field("net", formats.CIDR),
    )
)


def _ordered(table: Fields, path: str, report: Report) -> None:
    if table["min"] > table["max"]:
        report(f"{path}.min", "must not be greater than max")


def _tables(highest: int) -> Object:
    index = Integer(1, highest)
    return Object(
        Field("min", index, kept=True, required="must be given"),
        Field("max", index, kept=True, required="must be given"),
        rules=[_ordered],
    )


def _kept(type_: Any) -> Callable[[list[str]], tuple[Any, bool]]:
    return lambda _: (type_, True)


def _dropped(type_: Any) -> Callable[[list[str]], tuple[Any, bool]]:
    return lambda _: (type_, False)


# type word -> what follows it on the line -> the field's type, and whether an empty value is stored
_TYPES: dict[str, Callable[[list[str]], tuple[Any, bool]]] = {
    "flag": _kept(Boolean()),
    "number": lambda bounds: (Integer(*map(int, bounds)), True),
    "text": _dropped(Text()),
    "text*": _kept(Text()),
    "duration": _kept(_DURATION),
    "words": lambda values: (words(*values), True),
    "word": lambda values: (words_or_none(*values), False),
    "word*": lambda values: (words_or_none(*values), True),
    "anycase": lambda values: (words_in_any_case(*values), False),
    "expression": _dropped(formats.REGULAR_EXPRESSION),
    "pairs": _dropped(_PAIRS),
    "address4": _dropped(formats.ADDRESS_4),
    "address6": _dropped(formats.ADDRESS_6),
    "networks": _kept(ListOf(formats.CIDR)),
    "networks4": _kept(ListOf(formats.CIDR_4)),
    "interface": _dropped(formats.INTERFACE),
    "filter": _dropped(formats.INTERFACE_FILTER),
    "filters": _kept(ListOf(formats.INTERFACE_FILTER)),
    "port": _kept(formats.Port(named=False)),
    "ports": _kept(ListOf(formats.Port(named=False), 0, 7)),
    "map": _kept(TextMap()),
    "failsafe": _kept(_FAILSAFE),
    "timeouts": _kept(_TIMEOUTS),
    "tables": _kept(ListOf(_tables(0xFFFFFFFF))),
    "table": _kept(_tables(250)),
    "overrides": _dropped(
        ListOf(
            Object(
                Field("name", Text(), required="must be given"),
                Field("timeout", formats.DURATION, kept=True, required="must be given"),
            )
        )
    ),
}


def _one_table_setting(settings: Fields, path: str, report: Report) -> None:
    if "routeTableRange" in settings and "routeTableRanges" in settings:
        report(f"{path}.routeTableRange", "may not stand beside routeTableRanges")
    designated = sum(table["max"] - table["min"] + 1 for table in settings.get("routeTableRanges", []))
    if designated > 0xFFFF:
        report(f"{path}.routeTableRanges", f"may name 65535 tables, not {designated}")


def _field(line: str) -> Field:
    name, word, *rest = line.split()
    type_, kept = _TYPES[word](rest)
    return Field(name, type_, defaults.FELIX.get(name), kept=kept)


FELIX_CONFIGURATION = Object(*map(_field, _SETTINGS.split("\n")[1:-1]), rules=[_one_table_setting])

_ENABLED = words("Enabled", "Disabled")
_PERIOD = Object(Field("reconcilerPeriod", formats.DURATION, kept=True))
_PORT = Integer(0, 65535)
_HOST_ENDPOINTS = Object(
    Field("autoCreate", _ENABLED),
    Field("createDefaultHostEndpoint", _ENABLED),
    Field(
        "templates",
        ListOf(
            Object(
                Field("generateName", formats.NAME),
                Field("interfaceCIDRs", ListOf(formats.CIDR)),
                Field("interfacePattern", formats.REGULAR_EXPRESSION),
                Field("labels", formats.LABELS),
                Field("nodeSelector", formats.SELECTOR),
            )
        ),
    ),
)
_CONTROLLERS = Object(
    Field(
        "node",
        Object(
            Field("reconcilerPeriod", formats.DURATION, kept=True),
            Field("syncLabels", _ENABLED),
            Field("hostEndpoint", _HOST_ENDPOINTS, kept=True),
            Field("leakGracePeriod", formats.DURATION, kept=True),
        ),
        kept=True,
    ),
    Field("policy", _PERIOD, kept=True),
    Field("workloadEndpoint", _PERIOD, kept=True),
    Field("serviceAccount", _PERIOD, kept=True),
    Field("namespace", _PERIOD, kept=True),
    Field(
        "loadBalancer",
        Object(Field("assignIPs", words("AllServices", "RequestedServicesOnly"), "AllServices")),
        kept=True,
    ),
    Field("policyMigration", Object(Field("enabled", _ENABLED, "Enabled")), kept=True),
)
KUBE_CONTROLLERS_CONFIGURATION = Object(
    Field("logSeverityScreen", words("None", "Debug", "Info", "Warning", "Error", "Fatal", "Panic")),
    Field("healthChecks", _ENABLED, "Enabled"),
    Field("etcdV3CompactionPeriod", formats.DURATION, kept=True),
    Field("prometheusMetricsPort", _PORT, 9094, kept=True),
    Field("controllers", _CONTROLLERS, {}, kept=True),
    Field("debugProfilePort", _PORT, kept=True),
)
