"""Options and entry points: nothing else parses arguments."""
