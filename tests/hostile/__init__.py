"""Other people's code at its worst, one vice per file, as a handler and as a node of ComfyUI.

A vice has ``attempt(tries, prey, place)``: it tries every way it knows to do one harm. `prey` says to what (places,
ports and processes that the test made), `place` is a directory of its own. Standard library only: the same code runs
inside a ComfyUI that has nothing else.

Each is safe to let loose without a sandbox, where the tests let it loose to see that it bites: it only reaches for what
the test planted, sends nothing to an address that is not this machine's loopback, hands the kernel's dangerous calls
arguments that they refuse, and takes tens of processes and mebibytes.
"""
