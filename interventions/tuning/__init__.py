"""Teaching a model refusal tokens. Imports steering and below."""
