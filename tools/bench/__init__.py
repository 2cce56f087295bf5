"""`ringmain bench`: how fast the bus is on this machine, beside what a user could pick instead.

The command is in `command`. Nothing is imported here: a measurement has many workers, and each loads its own bench only.
"""
