"""A worker process without a model, for tests of the scheduler and the router.

`python -m cortex.platform.fake_engine --port 0 --model NAME` is a real process with a port, a log, signals and an exit
code. It answers like vLLM or llama-server, and fails like them as its *script* requests: on the command line, or
through `POST /fake` while it runs.

Its answers depend on no clock and no randomness, so the same request to the same function always gets the same bytes.
Each answer starts with the function's name, which reveals an answer of the wrong worker.

Pure modules decide what happens (`script`, `outcome`, `answer`, the shapes); `engine`, `server` and `orphans` do it.
The README lists the modules.
"""
