"""`make bench`: latency, throughput, memory and idle cost of a real worker, printed with the machine's facts."""
