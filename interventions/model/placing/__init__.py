"""Where a model's weights lie and in how few bits. Imports data, and of this folder's parent what opening needs."""
