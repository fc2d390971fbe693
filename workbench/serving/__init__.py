"""A workspace for programs that ask instead of people who look: read-only questions, and their answers as plain data."""
