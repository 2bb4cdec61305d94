"""The commands behind `python -m helpers`."""
