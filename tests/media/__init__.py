"""Real servers for audio behind `engine = "command"`, on the CPU, by OpenAI's own SDKs: `just test-media`.

Their weights are made on the spot (`programs/make_weights.py`), so the answers are known and nothing is fetched.
"""
