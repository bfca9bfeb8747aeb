"""Workloads and benchmarks that use Halo as its users do: through `halo` alone."""
