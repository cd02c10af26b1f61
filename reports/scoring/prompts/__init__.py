"""What a judge is asked and how its reply is read, a file a prompt. Imports data."""
