"""A workspace for programs that ask instead of people who look: read-only questions, answers as plain data."""
