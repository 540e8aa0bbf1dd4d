"""Tests mirror the package: tests/ROOM/test_MODULE.py."""
