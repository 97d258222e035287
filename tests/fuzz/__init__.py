"""Fuzzing: each parser is given thousands of broken files under limits of time and memory."""
