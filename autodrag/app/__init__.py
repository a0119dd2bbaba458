"""The browser editor and the HTTP API: sessions around shared networks, live drags, one page without a build step."""
