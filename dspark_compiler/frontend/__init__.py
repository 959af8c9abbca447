"""Front end: what the user named becomes a torch module, and the module becomes a cache-free Program."""
