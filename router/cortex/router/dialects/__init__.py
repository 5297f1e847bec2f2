"""Translate each client dialect to and from the workers' chat dialect. Pure: no I/O, no clock, no randomness.

A request is parsed once, into a value that builds the worker's request and the client's answer; callers do the I/O:

    request = dialect.read_request(name, body, traits)   # raises BadRequest
    ...                                                  # choose an instance, POST request.body(its model name)
    reply = request.answer(id, created)                  # id: the unique part of every id in the answer
    reply.plain(the worker's whole body).body            # raises BadAnswer
    stream = reply.stream(request_id)                    # or: open() ping() feed(bytes) close() fail(fault)

`chat/`, `messages/`, `responses/` and `ollama/` have one module each for request, answer and stream; `embeddings`,
`rerank` and `native` are one module each. `core/` is shared: `conversation_builder` puts a request's messages in order
as a `conversation`; an answer is parsed as `chunks`, ordered as `content_blocks` and written in the client's dialect.
`traits` describes what a function accepts; `errors` maps faults to each dialect.
"""
