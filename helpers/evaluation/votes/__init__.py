"""The blind vote, from ballot to tally."""
