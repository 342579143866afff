"""What the flows cost, measured on this machine beside the alternatives."""
