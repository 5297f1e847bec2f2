"""A worker process without a model: the engine that the whole scheduler is proven with.

`python -m cortex.platform.fake_engine --port 0 --model NAME` is a real process with a real port, log, signals
and exit code. It speaks OpenAI as vLLM or llama-server speak it, and it fails in every way that they do, when
its *script* says so: on the command line at the start, through `POST /fake` while it runs.

It is not a mock and not a model: it has no randomness and no clock in its answers, so the same request to the
same function always gets the same bytes, and each answer opens with the function's name, so that a mixed-up
answer is seen at once.

The rule that keeps it right: what happens is decided in pure modules (`script`, `fate`, `answer`, the shapes),
and only `engine`, `server` and `leftovers` do it.

    script    everything that can be scripted, and what each option means
    options   the command line made from it
    fate      what becomes of the nth request
    request   what clients send         answer    what is said, token by token
    vllm, llama, shapes                 how each engine words it on the wire
    replay    captured streams instead  step      one write to the client
    ledger    the requests so far       engine    the running thing: loading, ready, dying
    server    its HTTP                  leftovers the processes it leaves behind
"""
