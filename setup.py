"""What pyproject.toml cannot say: the notebooks' sources are part of the package, and stand in `notebooks/` alone."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["helpers*"]), "helpers.notebooks"],
    package_dir={"helpers.notebooks": "notebooks"},
)
