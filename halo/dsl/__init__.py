"""The Python front end: ordinary functions over lazy values become logical plans."""
