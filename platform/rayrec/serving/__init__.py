"""Release -> HTTP endpoint, on Ray Serve."""
