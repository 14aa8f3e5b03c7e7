"""Other engines on this machine, measured beside ours: the same model, the same token ids, in turns."""
