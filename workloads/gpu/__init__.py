"""Measurements on a machine with an accelerator."""
