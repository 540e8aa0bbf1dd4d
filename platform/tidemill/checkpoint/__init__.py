"""Checkpoints: raw bytes and JSON, strategy-free, the manifest written last."""
