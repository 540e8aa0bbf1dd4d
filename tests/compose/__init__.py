"""Tests of the compose room."""
