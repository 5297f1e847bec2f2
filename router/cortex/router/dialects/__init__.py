"""Every client's dialect, translated to and from the one that workers speak. Pure: no I/O, no clock, no chance.

A request is read once, into a value that knows what to send and how to answer; the edge sends and relays:

    asked = dialect.read_request(name, body, traits)     # or raises BadRequest
    ...                                                  # choose an instance, POST asked.body(its model name)
    reply = asked.answer(id, created)                    # id: what is unique in every id of the answer
    reply.plain(whole body of the worker).body           # or raises BadAnswer
    stream = reply.stream(request_id)                    # or: open() ping() feed(bytes) close() fail(fault)

What lies where: a dialect's request in `messages`, `responses`, `chat`, `embeddings`; its answer in `*_answer`,
its stream in `*_stream`. Requests become a `conversation`, built in order by a `thread`; answers are read as
`chunks`, put in order as `blocks`, and said again. `traits` is what a function can take, `errors` what to say
when it fails.
"""
