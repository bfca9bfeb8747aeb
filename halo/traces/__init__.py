"""Traces of tool-using agents: one reader a format, one record for all."""
