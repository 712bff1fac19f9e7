"""Rank-DistiLLM: distil an LLM's rankings into cross-encoders, and measure what that buys."""
