"""The service over the library and its pipeline: sign in, upload, personalise, generate, fetch, erase."""
