"""The machine and the environment: hardware, the lock of versions, the setup cell, the doctor."""
