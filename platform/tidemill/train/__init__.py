"""One training loop over engines; the only room with deepspeed, and with checkpoint, torch."""
