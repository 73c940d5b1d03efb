"""An emulated cluster of real hosts on one machine: `python -m tests.lab run mixed4 -- run`. Needs root."""
