"""The jobs of a sweep on this machine: their processes, and what the terminal shows of them."""
