"""Reports over traces: prices, patterns, what-if, and their rendering."""
