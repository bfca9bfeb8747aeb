"""Measurements on a machine with an accelerator: the comparison, calibration, schedules, PTE."""
