"""Published attention techniques, one a file, each as a transform of a model's layers."""
