"""Run one transformer inference across several unequal machines."""

__version__ = "0.1.0"
