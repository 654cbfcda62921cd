"""Messages and conversations, written shortly."""


def user(content, **more) -> dict:
    return {"role": "user", "content": content, **more}


def assistant(content, **more) -> dict:
    return {"role": "assistant", "content": content, **more}


def system(content) -> dict:
    return {"role": "system", "content": content}


def conversation(*texts: str, system: str | None = None) -> dict:
    """A row with `messages`: the texts by user and assistant in turn."""
    turns = [(user, assistant)[number % 2](text) for number, text in enumerate(texts)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns}
