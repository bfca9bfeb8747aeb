"""Local models: which exist, how they are fetched and checked, and what their files say."""
