"""What a run depends on: processes, precision, random states, denormals, buffers."""

__all__: list[str] = []
