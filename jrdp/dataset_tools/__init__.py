"""Tools around datasets: verify, describe, convert from instance maps, generate a sample."""
