"""From a spec to objects, and from objects to rows."""
