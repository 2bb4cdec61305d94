"""What the machine and the versions ask of the loader; scoring, decoding, and repairs of the libraries."""
