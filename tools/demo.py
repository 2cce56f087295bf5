"""Placeholder until the demo is written."""


def demo() -> None:
    """Run a small exchange for a minute."""
