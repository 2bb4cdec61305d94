"""Changes to the libraries' speed or quirks, each guarded by versions."""
