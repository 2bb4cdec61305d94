"""What only this repository needs; not installed with the package."""
