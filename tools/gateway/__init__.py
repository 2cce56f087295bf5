"""The WebSocket gateway: topics for browsers and for programs on other machines. The protocol is FORMAT.md."""

from .settings import GatewaySettings
from .tokens import Token

__all__ = ["GatewaySettings", "Token"]
