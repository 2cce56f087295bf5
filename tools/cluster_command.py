"""`ringmain cluster`: one bus on several hosts. What the commands do is in files beside this, which need the extra `cluster`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from .exit_codes import EXIT_CODES_HELP, FAILED
from .service_log import LogFormat

__all__ = ["cluster_app"]

cluster_app = typer.Typer(
    help="Hold one bus on several hosts: run a node, look at all of them, hand the lead over.", no_args_is_help=True
)


@cluster_app.callback()
def check_installed() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("nats", "cryptography", "lz4")):
        raise ModuleNotFoundError("a cluster needs `pip install ringmain[cluster]`")


Config = Annotated[Path, typer.Argument(metavar="[CONFIG.toml]", help="With a table [cluster]; of any of its nodes.")]
CONFIG = Path("ringmain.toml")


@cluster_app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)
def node(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="With a table [cluster]; see docs/cluster.md.")],
    log_format: Annotated[LogFormat, typer.Option(help="How events are written to standard error.")] = LogFormat.text,
) -> None:
    """Run this host's node: it holds the bus, and leads or follows, until SIGTERM or Ctrl-C.

    It waits for the nats-servers for as long as it takes, and tells systemd when it is ready (Type=notify). A second signal ends
    it at once.

    Example: ringmain cluster node ringmain.toml
    """
    from .cluster_node import run_node

    if run_node(config, log_format):
        raise typer.Exit(FAILED)


@cluster_app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)
def up(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where all of it lives; made if it is not there.")],
    tls: Annotated[bool, typer.Option("--tls", help="With an authority of its own, and certificates.")] = False,
    prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="Put before the buses' names, where these are taken.")
    ] = "",
) -> None:
    """Try it out: three nats-servers and three nodes, which hold one bus as a, b and c on this machine, until Ctrl-C.

    It says what to try. A node or a server that dies is started again. No process outlives this command; what was published
    stays in DIR.

    Example: ringmain cluster up /tmp/cluster
    """
    from .cluster_up import run_up

    run_up(directory, tls, prefix)


@cluster_app.command(epilog=EXIT_CODES_HELP)
def status(
    config: Config = CONFIG,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell who leads, how far each node is, and how the stream is.

    The exit code is 1 if nobody leads, a node is not there or far behind, or the stream does not answer or is full.

    Example: ringmain cluster status ringmain.toml
    """
    from .cluster_status import run_status

    if not run_status(config, as_json):
        raise typer.Exit(FAILED)


@cluster_app.command(epilog=EXIT_CODES_HELP)
def switchover(
    config: Config = CONFIG,
    to: Annotated[str, typer.Option(metavar="NODE", help="To whom; without it, whoever is there first.")] = "",
) -> None:
    """Have the node that leads hand over, and return once another one leads. No record is lost; publishers wait a moment.

    Example: ringmain cluster switchover ringmain.toml --to b
    """
    from .cluster_status import run_switchover

    run_switchover(config, to)


@cluster_app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)
def certificates(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where they are, and the authority that signs them.")
    ],
    host: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[,NAME…]", help="A host: all names and addresses by which others reach it. May be repeated."
        ),
    ],
) -> None:
    """Make a certificate for each host, and at first an authority of the cluster's own, which signs them.

    A host needs ca.pem, its own .pem and its own .key. Keep ca.key off the hosts: who has it can join.

    Example: ringmain cluster certificates tls --host a.example.com,10.0.0.1 --host b.example.com
    """
    from ..bus.cluster.certificates import make_authority, make_certificate

    make_authority(directory)
    for names in host:
        made = make_certificate(directory, names.split(","))
        typer.echo(f"{made.cert} and {made.key}")
    typer.echo(f"signed by {directory / 'ca.pem'}; keep {directory / 'ca.key'} off the hosts")


@cluster_app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)
def seed(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Of the node that has the data.")],
) -> None:
    """Begin the cluster's stream with the rows that this node has: a bus of one host gets others.

    It makes the stream; nothing else may have been appended to it. Stop what writes the bus before, and start this node
    afterwards; the others begin with empty data directories, and receive all of it.

    Example: ringmain cluster seed ringmain.toml
    """
    from .cluster_seed import run_seed

    run_seed(config)


@cluster_app.command("server-config", epilog=EXIT_CODES_HELP, no_args_is_help=True)
def server_config(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="Of the node on the same host, or as it would be.")
    ],
    store: Annotated[Path, typer.Option(metavar="DIR", help="Where the server keeps its streams.")],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="The server's configuration; only its owner may read it.")
    ],
    route_port: Annotated[int, typer.Option(metavar="N", help="Where servers reach each other.")] = 6222,
) -> None:
    """Write the configuration of a host's nats-server, as the cluster needs it: synced, pinged, with TLS and one user.

    It is all in the table [cluster]: the first of the servers is this host's.

    Example: ringmain cluster server-config ringmain.toml --store /var/lib/nats --output /etc/ringmain/nats.conf
    """
    from ..bus.cluster.servers import write_configuration
    from .cluster_table import server_settings
    from .configuration import load_configuration

    plan = load_configuration(config).cluster
    if plan is None:
        raise ValueError(f"{config}: it has no table [cluster]")
    write_configuration(output, server_settings(plan, store.absolute(), route_port))
    sys.stdout.write(f"nats-server -c {output}\n")
