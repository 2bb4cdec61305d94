"""One style for tables, masks, plots and drawings."""
