"""Calico networking and policy for plain Docker."""

__version__ = "0.1.0"
