"""Vendors on loopback: each answers as its specification says, or fails as it was asked to."""
