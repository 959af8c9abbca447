"""The machine at hand: processor, memory, read bandwidth, installed versions. Needs neither torch nor the compiler."""
