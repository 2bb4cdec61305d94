"""The comparison as one page."""
