"""The cost of requests before they run: FLOPs and memory, counted on tensors of the meta device."""
