"""`ringmain bench`: how fast the bus is on this machine, beside what a user could pick instead.

The command is in `command`. Nothing is imported here: the workers of a measurement, of which there are many, load their own bench only.
"""
