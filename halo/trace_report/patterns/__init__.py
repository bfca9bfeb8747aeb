"""Inefficiency patterns of tool use, one rule a file."""
