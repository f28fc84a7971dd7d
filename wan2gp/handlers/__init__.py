"""What runs in the children: the runtime, one module per handler, the courier."""
