"""`ringmain bench`: how fast the bus is on this machine, beside what a user could pick instead."""

from .command import bench_app

__all__ = ["bench_app"]
