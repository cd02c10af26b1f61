"""Answering while others are being answered: rows of different arms that join a batch between steps and leave it when they end."""
