"""Halo."""
