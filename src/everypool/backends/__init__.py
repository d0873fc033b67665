"""How a pooling is computed: `eager` is the definition; faster implementations of the same are chosen in `choose`."""
