"""Ray's room: start the trainer, follow the run, compose a worker."""
