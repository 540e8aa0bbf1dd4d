"""Tidemill trains models on whatever machines the tide brings."""

__version__ = "0.1.0"
