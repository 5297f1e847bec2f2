"""What a function is: its declaration, the catalogue, how it is launched, the life of an instance.

Everything here is pure: no I/O, no clock, no asyncio. Values come in, values go out.
"""
