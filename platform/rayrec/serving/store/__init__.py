"""What an endpoint keeps between requests: events, items and users, in SQLite or PostgreSQL."""
