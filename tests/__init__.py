import os
import sys

# Without bytecode, every process compiles the tests and hypothesis anew, and each of the hundreds that they start
# compiles cortex. Here, because `conftest.py` is imported later and imports hypothesis.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
