"""What stands around the trainer: checkpoints, callbacks, sessions, results."""
