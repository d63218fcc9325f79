"""From candidates to an answer: sources, and what is done with the order of their items."""
