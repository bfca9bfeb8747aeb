"""Prices of work: usage counters, token counts, hardware and model profiles."""
