"""What an answer is: refusal, partial, compliance or broken, one scorer a file. Imports data."""
