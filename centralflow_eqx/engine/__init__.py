"""The mathematics: response, curvature, complementarity, oscillation."""
