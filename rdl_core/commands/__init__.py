"""What `rdl` does with a corpus of one's own.

``own`` and ``words`` take the command line apart; the other modules do what it asks for.
"""

__all__ = ["book", "distill", "evaluate", "export", "nodes", "own", "rerank", "students", "words"]
