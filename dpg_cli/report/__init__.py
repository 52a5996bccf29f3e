"""Compare runs: statistics over seeds, and published results to put beside them."""
