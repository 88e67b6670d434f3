"""Tables, text and pages for papers."""
