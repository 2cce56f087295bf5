"""A node's configuration, for the commands that connect to its servers."""

from __future__ import annotations

from pathlib import Path

from .cluster_table import ClusterPlan
from .configuration import Configuration, load_configuration

__all__ = ["load_cluster"]


def load_cluster(config: Path) -> tuple[Configuration, ClusterPlan]:
    """A file with a table [cluster], and certificates that can serve. Raises ConfigError, OSError, CertificateFault."""
    configuration = load_configuration(config)
    plan = configuration.cluster
    if plan is None:
        raise ValueError(f"{config}: it has no table [cluster]; `ringmain serve` runs a bus of one host")
    if plan.access.tls is not None:
        from ..bus.cluster.certificates import check_certificates  # slow to load

        check_certificates(plan.access.tls)
    return configuration, plan
