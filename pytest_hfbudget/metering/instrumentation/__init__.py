"""Where the plugin stands in the clients that reach Hugging Face, one module for each library."""
