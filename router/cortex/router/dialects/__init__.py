"""Every client's dialect, translated to and from the one that workers speak. Pure: no I/O, no clock, no chance.

A request is read once, into a value that knows what to send and how to answer; the edge sends and relays:

    request = dialect.read_request(name, body, traits)   # or raises BadRequest
    ...                                                  # choose an instance, POST request.body(its model name)
    reply = request.answer(id, created)                  # id: what is unique in every id of the answer
    reply.plain(whole body of the worker).body           # or raises BadAnswer
    stream = reply.stream(request_id)                    # or: open() ping() feed(bytes) close() fail(fault)

`chat/`, `messages/` and `responses/` have one module each for a request, an answer and a stream; `embeddings`, `rerank`
and `native` are one module each. What they share is in `core/`: a request becomes a `conversation`, which a
`conversation_builder` puts in order; an answer is read as `chunks`, ordered as `content_blocks` and written in the
client's dialect. `traits` is what a function accepts; `errors` has the errors of every dialect.
"""
