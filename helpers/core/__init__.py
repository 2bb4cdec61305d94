"""What everything stands on: errors, settings, configuration, the run directory, files, processes."""
