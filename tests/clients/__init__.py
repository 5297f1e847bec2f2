"""The clients people use, run for real against a running cortex, without any network: `just test-clients`.

Not part of the test suite: it installs about a gigabyte and takes minutes. Every client answers every case, and a
table says which did; the exit code is 1 when any did not.

    install    the pinned clients, kept in a cache folder between runs
    cases      what is asked, of which function, and what has to come out
    clients    how each client is run without a person
    programs   the SDKs' side of it: small programs that run in the clients' own Python
"""
