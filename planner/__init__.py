"""Query plans: the logical operators, merging a batch, statistics, EXPLAIN, the physical plan."""
