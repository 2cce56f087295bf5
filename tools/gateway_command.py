"""`ringmain gateway` and `ringmain token`: topics over WebSocket, and who may read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..bus.segments import check_bus_name
from .configuration import load_configuration
from .gateway import GatewaySettings
from .gateway.table import load_tokens
from .gateway.tokens import new_token
from .printing import note
from .service_log import LogFormat, event, start_logging

__all__ = ["gateway", "token"]

DEFAULTS = GatewaySettings(topics=("*",))
BESIDE_CONFIG = {"config", "log_format", "until_eof"}  # what the table [gateway] does not say


def gateway(
    context: typer.Context,
    buses: Annotated[list[str] | None, typer.Argument(metavar="[BUS]…", help="Which buses' topics it offers.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Take all of it from the table [gateway] of a ringmain.toml, none from options."
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = DEFAULTS.host,
    port: Annotated[int, typer.Option(metavar="N", help="0: any free one; the log says which.")] = DEFAULTS.port,
    tokens: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who may read what; see `ringmain token`. Without it: anybody.")
    ] = None,
    open: Annotated[
        bool,
        typer.Option("--open", help="Listen on other addresses than this machine's own although there are no tokens."),
    ] = False,
    cert: Annotated[Path | None, typer.Option(metavar="FILE", help="TLS: the certificate, with its chain.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="TLS: its key.")] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="Let pages of this origin connect, such as https://example.com. May be repeated."
        ),
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="How events are written to standard error.")] = LogFormat.text,
    until_eof: Annotated[bool, typer.Option("--until-eof", hidden=True)] = False,  # `serve` holds the other end
) -> None:
    """Serve topics to browsers and other machines over WebSocket, until SIGTERM or Ctrl-C.

    Needs `pip install ringmain[web]`. The protocol is in tools/gateway/FORMAT.md, how to run it in docs/gateway.md.

    Example: ringmain gateway exchange --tokens tokens.toml --host 0.0.0.0 --cert cert.pem --key key.pem
    """
    if config is None and not buses:
        raise ValueError("buses to offer are expected, such as `ringmain gateway exchange`, or --config FILE")
    if config is not None:
        if buses:
            raise ValueError("buses, or --config FILE, are expected, not both")
        if beside := _given_beside_config(context):
            raise ValueError(f"--config says all of it: leave out {', '.join(beside)}")
        settings = load_configuration(config).gateway
        if settings is None:
            raise ValueError(f"{config}: it has no table [gateway]")
    else:
        settings = GatewaySettings(
            topics=tuple(f"{check_bus_name(bus)}/*" for bus in buses or ()),
            host=host,
            port=port,
            tokens=load_tokens(tokens) if tokens is not None else (),
            open=open,
            cert=cert,
            key=key,
            origins=tuple(origin or ()),
        )
    try:
        from .gateway.serving import run_gateway  # the extra `web`
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the gateway needs `pip install ringmain[web]`") from None
    start_logging(log_format)
    run_gateway(settings, lambda port: _say_ready(settings, port), until_eof=until_eof)
    event("stopped")


def _given_beside_config(context: typer.Context) -> list[str]:
    """The options on the command line that say what the table [gateway] says."""
    return [
        option.opts[0]
        for option in context.command.params
        if (name := option.name or "") not in BESIDE_CONFIG
        and (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    ]


def _say_ready(settings: GatewaySettings, port: int) -> None:
    event(
        "ready",
        host=settings.host,
        port=port,
        tls=settings.cert is not None,
        tokens=len(settings.tokens),
        topics=", ".join(settings.topics),
    )


def token(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Whose it is, of letters, digits, - and _; the log says it.")
    ],
    topics: Annotated[
        list[str] | None,
        typer.Option(
            "--topic",
            metavar="PATTERN",
            help="What it may read, such as exchange/*; without it: every topic. May be repeated.",
        ),
    ] = None,
) -> None:
    """Make a token for the gateway: the token itself on standard error, for its user; on standard output what the gateway keeps.

    Example: ringmain token dashboard --topic 'exchange/*' >> tokens.toml
    """
    text, made = new_token(name, topics or ["*"])
    note(f"the token, which is kept nowhere: {text}")
    typer.echo(f'[tokens.{name}]\nsha256 = "{made.sha256}"\ntopics = {json.dumps(made.topics)}')
