"""The schemas that ship with the package: orders, trades, accounts and ten-level quotes, declared in `schemas.toml`."""

from __future__ import annotations

from pathlib import Path

from .schema import Schema

__all__ = ["ACCOUNTS", "ORDERS", "QUOTES", "SHIPPED", "TRADES"]

SHIPPED: dict[str, Schema] = Schema.from_toml(Path(__file__).with_name("schemas.toml"))

ORDERS = SHIPPED["orders"]
TRADES = SHIPPED["trades"]
ACCOUNTS = SHIPPED["accounts"]
QUOTES = SHIPPED["quotes"]
