"""The parts of a prefix that is spread over several slots of a Redis Cluster."""
