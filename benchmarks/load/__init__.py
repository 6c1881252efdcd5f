"""A bounded load on a server of the loopback: what clients see, its memory, cancellation, and its throughput."""
