"""Several servers as one engine: admission, routing by prefix, circuit breakers, restart."""
