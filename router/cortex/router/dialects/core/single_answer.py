"""What a worker's stream says of an answer with one choice, for the machines of all translated dialects."""

from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import Choice, Chunk, Ending, Tokens


class SingleAnswer:
    """The usage and the ending of an answer, as far as its stream has come."""

    def __init__(self) -> None:
        self._usage: chunks.Usage | None = None
        self._ending: Ending | None = None

    def read(self, chunk: Chunk) -> Choice | None:
        """Return what a chunk adds to the answer. Raises `BadAnswer` when the worker aborted it."""
        self._usage = chunk.usage or self._usage
        choice = chunks.choice_of(chunk)
        if choice is not None:
            self._ending = chunks.ending(chunk, choice) or self._ending
        return choice

    def tokens(self, prompt_tokens: int | None) -> Tokens:
        """Return the worker's usage; before it is known, the prompt's tokens alone."""
        return chunks.tokens(self._usage, prompt_tokens)

    def ending(self) -> Ending:
        """Return how the answer ended. Raises `BadAnswer` when the worker sent no finish reason."""
        if self._ending is None:
            raise chunks.truncation()
        return self._ending
