"""Engines. `base` is the seam; every other module is one engine, imported only when it is used."""
