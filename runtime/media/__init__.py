"""Media in and out: pictures, videos and their sound, contact sheets."""
